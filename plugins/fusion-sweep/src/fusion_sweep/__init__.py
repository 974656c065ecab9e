"""Sweeps for fusion-core: many runs that share their models, and a store of their results.

from fusion_sweep import sweep

result = sweep("recipe.yaml", over={"algorithm.scale": "0:1:0.1"}, seeds=3)
result.best().recipe
"""

from fusion_core.commands import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
