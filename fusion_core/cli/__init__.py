"""The program `fuse`: it parses flags, calls the rooms below, and prints results."""
