"""Tasks of lm-evaluation-harness, measured in a process of its own."""
