"""Merges and sweeps of fusion-core on Dask's workers."""
