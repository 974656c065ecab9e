"""Spectral methods for fusion-core, which work on singular values and vectors."""
