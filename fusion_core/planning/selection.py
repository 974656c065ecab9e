"""The parts of a merge: which algorithm merges which tensors.

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

    from fusion_core.contracts.algorithm import Algorithm
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.planning.resolved import Resolved


@dataclass(frozen=True, slots=True)
class Part:
    """An algorithm, and the tensors that it merges as if they were a model."""

    algorithm: Algorithm[Any]
    #: None for all
    names: frozenset[str] | None = None


def create_algorithms(resolved: Resolved[AlgorithmSpec]) -> list[Algorithm[Any]]:
    """Make the algorithm that a recipe describes, then the same one as each override has it.

    Raises `RecipeError` for overrides of a method that adapts on tasks: it searches once, for the
    whole model.
    """
    if resolved.overridden and sees_tasks(resolved.component.spec):
        raise RecipeError(
            f"algorithm.overrides: {resolved.name} searches once for the whole model, with the "
            "same options",
            hint="Leave them out; only and skip work.",
        )
    return [resolved.create(), *map(resolved.component.create, resolved.overridden)]


def parts_of(
    algorithms: Sequence[Algorithm[Any]], selection: Selection, pool: ModelPool[Any]
) -> tuple[Part, ...]:
    """Share a model's tensors out among algorithms that `create_algorithms` made.

    Raises `RecipeError` for a pattern that matches nothing.
    """
    if selection == Selection():
        return (Part(algorithms[0]),)
    groups = selection.groups(pool.reference.infos)
    return tuple(
        Part(algorithms[0 if number is None else number + 1], frozenset(names))
        for number, names in groups.items()
    )
