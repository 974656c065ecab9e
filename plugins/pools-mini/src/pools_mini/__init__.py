"""mini8: eight small tasks and their tiny CLIP experts, inside the wheel."""
