"""Readers for untrusted files: weights, and the configuration and tokenizer next to them."""
