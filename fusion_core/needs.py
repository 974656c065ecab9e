"""What an algorithm needs of the pools beside it, as its spec says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_core.evaluation import sees_tasks

if TYPE_CHECKING:
    from fusion_core.model_pool import ModelPool
    from fusion_core.resolving import Resolved
    from fusion_core.specs import AlgorithmSpec
    from fusion_core.task_pool import TaskPool


def check_needs(
    algorithm: Resolved[AlgorithmSpec] | None, pool: ModelPool[Any], tasks: TaskPool[Any] | None
) -> None:
    """Raise `RecipeError` for what is missing; None is an algorithm that nothing is known of."""
    if algorithm is None:
        return
    spec, count = algorithm.component.spec, len(pool.experts)
    if spec.needs_base and pool.base is None:
        raise RecipeError(
            f"algorithm {spec.name!r} needs a base, and the model pool has none",
            hint="Name the model that the experts were fine-tuned from: model_pool.base.",
        )
    if sees_tasks(spec) and tasks is None and not _does_without(algorithm):
        raise RecipeError(
            f"algorithm {spec.name!r} needs tasks with {spec.needs_tasks} data, and there are none",
            hint="Name a task pool with --task-pool; see: fuse list tasks",
        )
    if count < spec.min_experts or count > (spec.max_experts or count):
        raise RecipeError(
            f"algorithm {spec.name!r} takes {_range(spec)} experts, the model pool has {count}",
            hint="Name them under model_pool.models.",
        )


def _does_without(algorithm: Resolved[AlgorithmSpec]) -> bool:
    option = algorithm.component.spec.needs_tasks_unless
    return option is not None and getattr(algorithm.config, option) is not None


def _range(spec: AlgorithmSpec) -> str:
    if spec.max_experts is None:
        return f"at least {spec.min_experts}"
    return f"{spec.min_experts} to {spec.max_experts}"
