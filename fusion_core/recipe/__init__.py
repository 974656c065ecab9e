"""Recipes as text and as models of options. This room knows their shape, but no component."""
