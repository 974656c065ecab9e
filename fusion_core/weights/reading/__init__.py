"""Weights and what lies beside them, read from files that nobody vouches for."""
