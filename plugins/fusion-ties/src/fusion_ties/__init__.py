"""TIES merging for fusion-core."""
