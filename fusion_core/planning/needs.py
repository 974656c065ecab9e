"""What an algorithm needs of the pools beside it, as its spec says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.task_pool import AdaptiveTask
from fusion_core.errors import FusionError, RecipeError

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.resolved import Resolved


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
            hint="Give the model pool the model that the experts were fine-tuned from.",
        )
    if sees_tasks(spec) and tasks is None and not _does_without(algorithm):
        raise RecipeError(
            f"algorithm {spec.name!r} needs tasks with {spec.needs_tasks} data, and there are none",
            hint="Name a task pool with --task-pool; see: fuse list tasks",
        )
    if sees_tasks(spec) and tasks and not any(isinstance(task, AdaptiveTask) for task in tasks):
        raise RecipeError(
            f"algorithm {spec.name!r} needs tasks with examples to look at: these can only be "
            "measured",
            hint="Name another task pool with --task-pool; see: fuse list tasks",
        )
    if count < spec.min_experts or count > (spec.max_experts or count):
        raise RecipeError(
            f"algorithm {spec.name!r} takes {_range(spec)} experts, the model pool has {count}",
            hint="Change the number of experts in the model pool.",
        )


def _does_without(algorithm: Resolved[AlgorithmSpec]) -> bool:
    option = algorithm.component.spec.needs_tasks_unless
    return option is not None and getattr(algorithm.config, option) is not None


def _range(spec: AlgorithmSpec) -> str:
    if spec.max_experts is None:
        return f"at least {spec.min_experts}"
    return f"{spec.min_experts} to {spec.max_experts}"


def sees_tasks(spec: AlgorithmSpec) -> bool:
    """Tell whether an algorithm looks at the tasks' data."""
    return spec.needs_tasks != "none"


def check_tasks(tasks: TaskPool[Any]) -> None:
    """Raise `RecipeError` for a pool without tasks: there is nothing to measure or to adapt on."""
    if not len(tasks):
        raise RecipeError(
            "the task pool has no tasks", hint="Name some with --tasks; see: fuse list tasks"
        )


def check_data(tasks: TaskPool[Any], plugin: str) -> None:
    """Raise a `FusionError` naming plugin and task if a task's data is not there."""
    try:
        tasks.check()
    except FusionError as error:
        raise type(error)(f"{plugin}: {error.message}", hint=error.hint) from error
