"""Stands in for mergekit: just what docs/how-to/port-from-mergekit.md uses of it."""
