"""The parts of a stage: which options apply to which tensors, and how a part is run.

`fusion_core.recipe.patterns` defines what a recipe says about it.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.errors import FusionError, RecipeError
from fusion_core.planning.needs import sees_tasks
from fusion_core.recipe.patterns import Selection
from fusion_core.weights.reading.task_files import TASK_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.flow import Flow
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.stage import Stage
    from fusion_core.planning.resolved import Resolved


@dataclass(frozen=True, slots=True)
class Part:
    """A stage with some options, and the tensors that it takes as if they were a model."""

    algorithm: Stage[Any]
    #: None for all
    names: frozenset[str] | None = None

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Apply the stage to these tensors; raises `FusionError` if two parts save one file."""
        part_context = branch(context)
        if self.names is None:
            result = self.algorithm.apply(flow, part_context)
        else:
            result = flow.apply_to(self.names, self.algorithm.apply, part_context)
        if twice := part_context.side_files.keys() & context.side_files.keys():
            raise FusionError(
                f"algorithm.overrides: each part of the merge would write {min(twice)!r}",
                hint="Leave the overrides out: this method does not take them.",
            )
        join(context, part_context)
        return result


def branch(context: RunContext) -> RunContext:
    """Return a copy of a context that has saved nothing yet."""
    branched = copy(context)  # not `replace`, which asks for every field
    branched.side_files = {}
    return branched


def join(context: RunContext, branched: RunContext, *, prefix: str = "") -> None:
    """Add what a branch of a context saved; raises `FusionError` for a file that is there already.

    Files for tasks have fixed names, to which no prefix is added.
    """
    if context.side_files.keys() & TASK_FILES and branched.side_files.keys() & TASK_FILES:
        raise FusionError(
            "two stages of the merge each make a model that is another for every task",
            hint="Use one of them.",
        )
    named = {
        name if name in TASK_FILES else f"{prefix}{name}": content
        for name, content in branched.side_files.items()
    }
    if twice := named.keys() & context.side_files.keys():
        raise FusionError(
            f"two stages of the merge would write {min(twice)!r}",
            hint="Use each of them once.",
        )
    context.side_files |= named


def check_overrides(resolved: Resolved[AlgorithmSpec]) -> None:
    """Raise `RecipeError` for other options here and there of a method that adapts on tasks.

    It searches once, for the whole model.
    """
    selection = resolved.selection
    for option in ("overrides", "by_depth"):
        if getattr(selection, option) and sees_tasks(resolved.component.spec):
            raise RecipeError(
                f"algorithm.{option}: {resolved.name} searches once for the whole model, with the "
                "same options",
                hint="Leave them out; only and skip work.",
            )


def parts_of(
    stage: Stage[Any],
    resolved: Resolved[AlgorithmSpec] | None,
    names: Sequence[str],
    *,
    others: bool,
) -> tuple[Part, ...]:
    """Share tensors out among a stage and the same one with other options.

    `names` are the tensors that there are, `others` says whether the models have more than these.
    Raises `RecipeError` for a pattern that matches nothing.
    """
    if resolved is None or resolved.selection == Selection():
        return (Part(stage, frozenset(names) if others else None),)
    return tuple(
        Part(resolved.changed(options).create() if options else stage, frozenset(selected))
        for options, selected in resolved.selection.groups(names)
    )
