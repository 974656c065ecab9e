"""The smoke test: a few prompts that show at once whether a model says anything of sense."""
