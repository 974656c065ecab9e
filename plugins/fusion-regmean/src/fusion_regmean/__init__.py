"""Merges in closed form for fusion-core, computed from unlabeled data."""
