"""lm-mini: six small tasks and their tiny Llama experts, included in the package."""
