"""The parts of a stage: groups of tensors that are merged with the same options.

`fusion_core.recipe.patterns` defines how a recipe selects tensors and overrides options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.errors import FusionError, RecipeError
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.per_expert import values_by_expert
from fusion_core.weights import Linear
from fusion_core.weights.reading.task_files import TASK_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.flow import Flow
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.stage import Stage
    from fusion_core.planning.resolved_recipe import Resolved
    from fusion_core.weights import WeightSource


@dataclass(frozen=True, slots=True)
class Part:
    """A stage with certain options, and the tensors that it is applied to."""

    algorithm: Stage[Any]
    #: the names of the tensors; None for all
    names: frozenset[str] | None = None

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Apply the stage to these tensors; raises `FusionError` if two parts save one file."""
        part_context = replace(context, side_files={})
        if self.names is None:
            result = self.algorithm.apply(flow, part_context)
        else:
            result = flow.apply_to(self.names, self.algorithm.apply, part_context)
        if duplicates := part_context.side_files.keys() & context.side_files.keys():
            raise FusionError(
                f"algorithm: each part of the merge would write {min(duplicates)!r}",
                hint="Leave overrides and by_depth out: this method does not take them.",
            )
        join_context(context, part_context)
        return result


class Average(Algorithm[ComponentConfig]):
    """The mean of all experts, for tensors whose treatment by the pool is "average"."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        count = len(pool.experts)
        return context.merge(pool, Linear((1 / count,) * count, relative=False))


def join_context(context: RunContext, branch: RunContext, *, prefix: str = "") -> None:
    """Add a branch's side files to a context, under `prefix` and their names.

    Files for tasks have fixed names and get no prefix. Raises `FusionError` for duplicate files.
    """
    if context.side_files.keys() & TASK_FILES and branch.side_files.keys() & TASK_FILES:
        raise FusionError(
            "two stages of the merge each make a different model for every task",
            hint="Use one of them.",
        )
    files = {
        name if name in TASK_FILES else f"{prefix}{name}": content
        for name, content in branch.side_files.items()
    }
    if duplicates := files.keys() & context.side_files.keys():
        raise FusionError(
            f"two stages of the merge would write {min(duplicates)!r}",
            hint="Use each of them once.",
        )
    context.side_files |= files


def check_overrides(resolved: Resolved[AlgorithmSpec]) -> None:
    """Raise `RecipeError` for options by tensor of a method that looks at the whole model.

    One that adapts searches once, and one with files besides the weights writes each once.
    """
    spec = resolved.component.spec
    if spec.takes_overrides:
        return
    if spec.uses_tasks:
        reason = "searches once"
    else:
        reason = "makes one file per task" if spec.needs_task else "makes one file"
    for option in ("overrides", "by_depth"):
        if getattr(resolved.selection, option):
            raise RecipeError(
                f"algorithm.{option}: {resolved.name} {reason} for the whole model, with the same "
                "options",
                hint="Leave them out; only and skip work.",
            )


def split_into_parts(
    stage: Stage[Any],
    resolved: Resolved[AlgorithmSpec] | None,
    names: Sequence[str],
    model: Sequence[str],
    experts: Sequence[str],
) -> tuple[Part, ...]:
    """Split tensors among a stage and copies of it with other options.

    `model` are all tensors of the models, of which `names` are some. Raises `RecipeError` for a
    pattern that matches nothing.
    """
    if resolved is None or resolved.selection == Selection():
        return (Part(stage, frozenset(names) if len(names) < len(model) else None),)
    names_experts = any(curve.names_experts for curve in resolved.selection.by_depth)
    plain = values_by_expert(resolved.config, experts) if names_experts and experts else {}
    return tuple(
        Part(resolved.changed(options).create() if options else stage, frozenset(selected))
        for options, selected in resolved.selection.groups(names, model, plain)
    )
