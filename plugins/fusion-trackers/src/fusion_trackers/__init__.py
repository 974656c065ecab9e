"""Logs runs of fusion-core to TensorBoard and Weights & Biases."""
