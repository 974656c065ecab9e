"""Find plugins, keep each one's failures to itself, and look components up by name."""
