"""`fuse compare`: compare the reports of several models."""
