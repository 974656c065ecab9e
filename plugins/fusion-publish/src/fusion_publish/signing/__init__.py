"""Signatures of model directories by OpenSSF model signing."""
