"""Carry a plan out: merge, commit, evaluate and record."""
