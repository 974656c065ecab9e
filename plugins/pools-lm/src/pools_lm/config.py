"""Options of the language pools; free of torch, so that listing them costs nothing."""

from fusion_core import CheckpointsConfig


class LanguageConfig(CheckpointsConfig):
    """A base and experts: paths, hub ids or recipes (from Python also live models, state dicts)."""
