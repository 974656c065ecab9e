"""Recipes as text and as models of options: their shape, without knowing any component."""
