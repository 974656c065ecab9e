"""The command `fuse`: parses, calls the floors below, prints."""
