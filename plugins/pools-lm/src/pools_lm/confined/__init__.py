"""Tokenizers and chat templates of models that nobody vouches for, used in a child process."""
