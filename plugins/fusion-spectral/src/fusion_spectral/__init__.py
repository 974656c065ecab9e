"""Spectral methods for fusion-core: what is decided by singular values and vectors."""
