"""Pools of language models and sentence encoders for fusion-core."""
