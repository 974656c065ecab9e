"""Sparsifying and sign-electing merges for fusion-core."""
