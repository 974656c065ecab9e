"""Discovery of plugins, isolation of their failures, and lookup of components by name."""
