"""lm-mini: six small tasks and their tiny Llama experts, inside the wheel."""
