"""Pools by name: published experts of the tasks of GLUE, from the hub."""
