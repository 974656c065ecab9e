"""Runs that make an output again, and the comparison of the results."""
