"""Merges in closed form for fusion-core: what experts do with unlabeled data decides."""
