"""Checks that the pools provide what an algorithm needs, as its spec declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.contracts.task_pool import AdaptiveTask
from fusion_core.errors import FusionError, RecipeError
from fusion_core.planning.resolution import data_needs_of

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.resolved_recipe import Resolved
    from fusion_core.plugins.manager import PluginManager


def check_needs(
    algorithm: Resolved[AlgorithmSpec] | None,
    pool: ModelPool[Any],
    tasks: TaskPool[Any] | None,
    plugins: PluginManager,
    *,
    pipeline: str | None = None,
) -> None:
    """Raise `RecipeError` for unmet needs; an algorithm without a spec (None) declares none.

    `pipeline` is the name of the pipeline that contains it.
    """
    if algorithm is None:
        return
    spec, count = algorithm.component.spec, len(pool.experts)
    label = f"algorithm {spec.name!r}"
    if pipeline is not None:
        label = f"algorithm {pipeline!r} (its stage {spec.name!r})"
    if spec.needs_base and pool.base is None:
        raise RecipeError(
            f"{label} needs a base, and the model pool has none",
            hint="Give the model pool the model that the experts were fine-tuned from.",
        )
    if data_needs_of(algorithm) != "none" and tasks is None:
        hint = "Name a task pool with --task-pool; see: fuse list tasks."
        specs = (component.spec for component in plugins.components(ModelPoolSpec))
        if makers := [spec.name for spec in specs if spec.unlabeled_task_pool]:
            hint += f" Model pools that make such data from the models: {', '.join(makers)}."
        raise RecipeError(
            f"{label} needs tasks with {spec.needs_tasks} data, and there are none", hint=hint
        )
    if spec.uses_tasks and tasks and not any(isinstance(task, AdaptiveTask) for task in tasks):
        raise RecipeError(
            f"{label} needs tasks with examples to look at: these can only be measured",
            hint="Name another task pool with --task-pool; see: fuse list tasks",
        )
    if count < spec.min_experts or count > (spec.max_experts or count):
        expected = f"{spec.min_experts}"
        if spec.max_experts is None:
            expected = f"at least {spec.min_experts}"
        elif spec.max_experts != spec.min_experts:
            expected = f"{spec.min_experts} to {spec.max_experts}"
        raise RecipeError(
            f"{label} takes {expected} experts, the model pool has {count}",
            hint="Change the number of experts in the model pool.",
        )


def check_tasks(tasks: TaskPool[Any]) -> None:
    """Raise `RecipeError` for a task pool without tasks."""
    if not len(tasks):
        raise RecipeError(
            "the task pool has no tasks", hint="Name some with --tasks; see: fuse list tasks"
        )


def check_data(tasks: TaskPool[Any], plugin: str) -> None:
    """Raise a `FusionError` that names plugin and task for missing task data."""
    try:
        tasks.check()
    except FusionError as error:
        raise type(error)(f"{plugin}: {error.message}", hint=error.hint) from error
