"""mergekit's configurations as recipes of fusion-core."""
