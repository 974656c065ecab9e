"""`fuse runs`: what sweeps measured, listed, shown, compared, exported and removed."""
