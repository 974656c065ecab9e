"""FusionBench's configurations as recipes of fusion-core."""
