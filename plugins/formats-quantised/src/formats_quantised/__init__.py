"""Quantised checkpoints as weights of fusion-core, dequantised range by range."""
