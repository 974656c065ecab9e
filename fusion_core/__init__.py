"""fusion-core: a plugin-based framework for deep model fusion.

Everything public is imported from here, and only when it is used: `import fusion_core` itself is
as cheap as an empty module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_core.algorithm import Algorithm, RunContext, TensorwiseAlgorithm
    from fusion_core.config import ComponentConfig, Recipe
    from fusion_core.context import RunInfo
    from fusion_core.errors import FusionError
    from fusion_core.hookspecs import hookimpl
    from fusion_core.model_pool import ModelPool
    from fusion_core.planning import RunOptions
    from fusion_core.recipes import load_recipe
    from fusion_core.run import RunResult, run_fusion
    from fusion_core.specs import AlgorithmSpec, ModelPoolSpec, TaskPoolSpec
    from fusion_core.task_pool import Batch, FeatureTask, Report, Split, Task, TaskPool
    from fusion_core.weights import Cut, Piece, Scan, TensorInfo, WeightSource

_HOMES = {
    "fusion_core.algorithm": ("Algorithm", "RunContext", "TensorwiseAlgorithm"),
    "fusion_core.config": ("ComponentConfig", "Recipe"),
    "fusion_core.errors": ("FusionError",),
    "fusion_core.hookspecs": ("hookimpl",),
    "fusion_core.model_pool": ("ModelPool",),
    "fusion_core.planning": ("RunOptions",),
    "fusion_core.recipes": ("load_recipe",),
    "fusion_core.context": ("RunInfo",),
    "fusion_core.run": ("RunResult", "run_fusion"),
    "fusion_core.specs": ("AlgorithmSpec", "ModelPoolSpec", "TaskPoolSpec"),
    "fusion_core.task_pool": ("Batch", "FeatureTask", "Report", "Split", "Task", "TaskPool"),
    "fusion_core.weights": ("Cut", "Piece", "Scan", "TensorInfo", "WeightSource"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Algorithm",
    "AlgorithmSpec",
    "Batch",
    "ComponentConfig",
    "Cut",
    "FeatureTask",
    "FusionError",
    "ModelPool",
    "ModelPoolSpec",
    "Piece",
    "Recipe",
    "Report",
    "RunContext",
    "RunInfo",
    "RunOptions",
    "RunResult",
    "Scan",
    "Split",
    "Task",
    "TaskPool",
    "TaskPoolSpec",
    "TensorInfo",
    "TensorwiseAlgorithm",
    "WeightSource",
    "__version__",
    "hookimpl",
    "load_recipe",
    "run_fusion",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name == "__version__":
        from importlib.metadata import version

        return version("fusion-core")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fusion_core' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
