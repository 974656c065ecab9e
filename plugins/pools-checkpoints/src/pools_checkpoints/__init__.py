"""The pool `checkpoints`, and parts of it for other pools whose models come with side files.

from pools_checkpoints import CheckpointsConfig, CheckpointsPool

models = {"math": "models/math", "code": "models/code"}
pool = CheckpointsPool(CheckpointsConfig(base="models/base", models=models))
"""

from fusion_core.commands import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
