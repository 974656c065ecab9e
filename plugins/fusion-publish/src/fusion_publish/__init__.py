"""Provides commands that verify, reproduce and publish a merge."""
