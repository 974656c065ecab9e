"""Averages over the checkpoints of one training run."""
