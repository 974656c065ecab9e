"""The name of `fusion_testing` in 0.1."""

from fusion_core._moved import moved_error

raise moved_error(__name__)
