"""Merges as lazy sources: kernels, pieces, surveys, and executors that run units of work."""
