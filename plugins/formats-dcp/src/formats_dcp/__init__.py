"""Distributed checkpoints of torch, read in shards and merged like any other model."""
