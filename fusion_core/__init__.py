"""fusion-core: a plugin-based framework for deep model fusion.

Everything public is imported from here, and only when it is used: `import fusion_core` itself is
as cheap as an empty module.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_core.contracts.algorithm import Algorithm, RunContext, TensorwiseAlgorithm
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.report import Report
    from fusion_core.contracts.run import RunInfo, RunResult
    from fusion_core.contracts.specs import (
        AlgorithmSpec,
        CommandSpec,
        ExecutorSpec,
        ModelPoolSpec,
        TaskPoolSpec,
    )
    from fusion_core.contracts.task_pool import Batch, FeatureTask, Split, Task, TaskPool
    from fusion_core.errors import FusionError
    from fusion_core.hookspecs import hookimpl
    from fusion_core.planning.plan import RunOptions
    from fusion_core.recipe.config import ComponentConfig, Recipe
    from fusion_core.recipe.text import load_recipe
    from fusion_core.running.run import run_fusion
    from fusion_core.weights import Cut, Piece, Scan, TensorInfo, WeightSource

_HOMES = {
    "fusion_core.contracts.algorithm": ("Algorithm", "RunContext", "TensorwiseAlgorithm"),
    "fusion_core.contracts.model_pool": ("ModelPool",),
    "fusion_core.contracts.report": ("Report",),
    "fusion_core.contracts.run": ("RunInfo", "RunResult"),
    "fusion_core.contracts.specs": (
        "AlgorithmSpec",
        "CommandSpec",
        "ExecutorSpec",
        "ModelPoolSpec",
        "TaskPoolSpec",
    ),
    "fusion_core.contracts.task_pool": ("Batch", "FeatureTask", "Split", "Task", "TaskPool"),
    "fusion_core.errors": ("FusionError",),
    "fusion_core.hookspecs": ("hookimpl",),
    "fusion_core.planning.plan": ("RunOptions",),
    "fusion_core.recipe.config": ("ComponentConfig", "Recipe"),
    "fusion_core.recipe.text": ("load_recipe",),
    "fusion_core.running.run": ("run_fusion",),
    "fusion_core.weights": ("Cut", "Piece", "Scan", "TensorInfo", "WeightSource"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Algorithm",
    "AlgorithmSpec",
    "Batch",
    "CommandSpec",
    "ComponentConfig",
    "Cut",
    "ExecutorSpec",
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
