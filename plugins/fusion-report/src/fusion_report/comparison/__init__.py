"""`fuse compare`: reports of several models, side by side and example by example."""
