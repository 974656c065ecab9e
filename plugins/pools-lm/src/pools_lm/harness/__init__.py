"""Tasks of lm-evaluation-harness, evaluated in a separate process."""
