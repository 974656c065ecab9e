"""Tokenizers and chat templates from untrusted models, run in a child process under limits."""
