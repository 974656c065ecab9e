"""Comparison of models by their side files: configurations, tokenizers, processors, labels."""
