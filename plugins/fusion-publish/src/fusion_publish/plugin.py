"""Registers the commands. Imports nothing heavy."""
