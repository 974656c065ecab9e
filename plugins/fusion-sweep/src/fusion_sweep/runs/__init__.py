"""The command `fuse runs`."""
