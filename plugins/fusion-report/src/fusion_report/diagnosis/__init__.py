"""`fuse diagnose`: measure a pool, and predict by rules which merge methods will work."""
