"""The parts of a stage: which algorithm takes which tensors.

What a recipe says about it is `fusion_core.recipe.patterns`; how parts are run is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_core.planning.needs import sees_tasks
from fusion_core.recipe.patterns import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.stage import Stage
    from fusion_core.planning.resolved import Resolved


@dataclass(frozen=True, slots=True)
class Part:
    """An algorithm, and the tensors that it takes as if they were a model."""

    algorithm: Stage[Any]
    #: None for all
    names: frozenset[str] | None = None


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
        Part(resolved.changed(options).create() if options else stage, frozenset(own))
        for options, own in resolved.selection.groups(names)
    )
