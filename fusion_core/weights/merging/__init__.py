"""Merges as lazy sources: kernels, pieces, surveys, and how units of work run."""
