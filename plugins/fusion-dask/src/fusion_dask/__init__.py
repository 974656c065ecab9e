"""Merges and sweeps of fusion-core on the workers of a Dask scheduler."""
