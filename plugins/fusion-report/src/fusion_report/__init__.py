"""Runs of fusion-core as one page: what was measured, what was learned, where it comes from."""
