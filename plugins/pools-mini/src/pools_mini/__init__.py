"""mini8: eight small tasks and their tiny CLIP experts, included in the package."""
