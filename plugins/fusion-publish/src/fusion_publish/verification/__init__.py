"""Checks that an output is as its provenance describes it."""
