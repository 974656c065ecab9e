"""Averages and task arithmetic for fusion-core."""
