"""Sweeps for fusion-core: many runs that share their models, and a store of their results.

from fusion_sweep import sweep

result = sweep("recipe.yaml", over={"algorithm.scale": "0:1:0.1"}, seeds=3)
result.best().recipe
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_sweep.results import SweepResult
    from fusion_sweep.runner import sweep
    from fusion_sweep.search import Search
    from fusion_sweep.store import Store
    from fusion_sweep.trial import Trial

_MODULES = {
    "Found": "results",
    "Search": "search",
    "Store": "store",
    "Trial": "trial",
    "sweep": "sweeping",
}

__all__ = ["Search", "Store", "SweepResult", "Trial", "sweep"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in _MODULES:
        raise AttributeError(f"module 'fusion_sweep' has no attribute {name!r}")
    return getattr(import_module(f"fusion_sweep.{_MODULES[name]}"), name)
