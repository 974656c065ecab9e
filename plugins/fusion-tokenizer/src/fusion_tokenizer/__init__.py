"""Transplants of another model's tokenizer: the embeddings of a model, one row per new token."""
