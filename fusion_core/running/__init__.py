"""Carry a plan out: merge, commit, evaluate, record."""
