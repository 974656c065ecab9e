"""A recipe in the place of a model: what it would merge is an operand, without a file in between.

Recipes are planned with the run that names them (`fusion_core.planning.plan`), which puts what they
merge in their places (`fusion_core.running`). Their results are not rounded unless they say
`output.dtype`; the rest of their `output` says where a run of their own would write, and means
nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.errors import BrokenPluginError, FusionError, RecipeError
from fusion_core.recipe.text import load_recipe, shown
from fusion_core.weights import WeightSource
from fusion_core.weights.origin import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import TensorInfo
    from fusion_core.weights.reading.assets import Files


@dataclass(frozen=True, eq=False, repr=False)
class RecipeSource(WeightSource):
    """The place of what another recipe merges: known from headers, and never read."""

    label: str
    infos: Mapping[str, TensorInfo]
    #: the recipe's models
    pool: ModelPool[Any]
    #: the files beside what it merges, whose weights are written in a dtype
    assets: Callable[[torch.dtype | None], Files]
    #: the recipe, resolved, with paths as a recipe in a folder names them
    recipe_in: Callable[[Path | None], Mapping[str, Any]]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Refuse: nothing is merged yet."""
        raise BrokenPluginError(
            f"{self.label} was read before it was made: tensor {name!r} from {start} to {stop}",
            hint="A model pool has to hold it as one of its models, not inside another source.",
        )

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """What will be merged."""
        return tuple(self.pool.by_name.values())

    def describe(self) -> str:
        """Name the algorithm."""
        return self.label

    @property
    def origin(self) -> Origin:
        """What the recipe merges."""
        return Origin(inputs=self.pool.inputs())

    def __repr__(self) -> str:
        return f"<{self.label}>"


def read_nested(
    given: str | Path | Mapping[str, Any], inside: tuple[str, ...]
) -> tuple[str, Mapping[str, Any], tuple[str, ...]]:
    """Return what to call a recipe in errors, the recipe, and the files that lead to its models.

    `inside` are those that led here. Raises `RecipeError` for a file that is one of them.
    """
    if isinstance(given, Mapping):
        return f"nested recipe (algorithm: {shown(given.get('algorithm'))})", given, inside
    recipe, path = load_recipe(given), os.path.realpath(given)
    if path in inside:
        loop = " -> ".join(map(os.path.relpath, [*inside[inside.index(path) :], path]))
        raise RecipeError(f"recipes that need each other cannot be merged: {loop}")
    return str(given), recipe, (*inside, path)


@contextmanager
def name_errors(label: str) -> Iterator[None]:
    """Put a recipe's name in front of the errors that it meets."""
    try:
        yield
    except FusionError as error:
        lines = error.message.splitlines()  # a table's rows begin with a space
        named = (line if line.startswith(" ") else f"{label}: {line}" for line in lines)
        raise type(error)("\n".join(named), hint=error.hint) from error
