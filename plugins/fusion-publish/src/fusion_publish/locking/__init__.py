"""Locked recipes: recipes with the commits and hashes of their inputs."""
