"""Nested recipes: a recipe in place of a model is merged lazily, without intermediate files.

`fusion_core.planning.plan` plans nested recipes, and `fusion_core.running` replaces each
`RecipeSource` by its merge. A nested result is rounded only if the nested recipe sets
`output.dtype`. The rest of its `output` is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.errors import BrokenPluginError, FusionError, RecipeError
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.text import format_value
from fusion_core.weights import WeightSource
from fusion_core.weights.origin import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import Contradiction, TensorInfo
    from fusion_core.weights.reading.assets import Files


@dataclass(frozen=True, eq=False, repr=False)
class RecipeSource(WeightSource):
    """A placeholder for the merge of a nested recipe, known from headers and never read."""

    label: str
    infos: Mapping[str, TensorInfo]
    #: the nested recipe's models
    pool: ModelPool[Any]
    #: returns the merge's side files, given the dtype of its weights
    assets: Callable[[torch.dtype | None], Files]
    #: returns the resolved recipe, with paths relative to a folder
    recipe_in: Callable[[Path | None], Mapping[str, Any]]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Raise `BrokenPluginError`: nothing is merged yet."""
        raise BrokenPluginError(
            f"{self.label} was read before it was made: tensor {name!r} from {start} to {stop}",
            hint="A model pool must hold it as one of its models, not inside another source.",
        )

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The models to merge."""
        return tuple(self.pool.by_name.values())

    def contradictions(self, base_config: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Yield nothing: the nested recipe reports the contradictions of its models."""
        del base_config
        return iter(())

    def describe(self) -> str:
        """Name the algorithm."""
        return self.label

    @property
    def origin(self) -> Origin:
        """The inputs of the nested recipe."""
        return Origin(inputs=self.pool.inputs())

    def __repr__(self) -> str:
        return f"<{self.label}>"


def read_nested(
    given: str | Path | Mapping[str, Any], parents: tuple[str, ...]
) -> tuple[str, Mapping[str, Any], tuple[str, ...]]:
    """Return a nested recipe's label for errors, its content, and the parents of its own models.

    `parents` are the real paths of the recipe files that contain it, outermost first. Raises
    `RecipeError` for a file that contains itself.
    """
    if isinstance(given, Mapping):
        return f"nested recipe (algorithm: {format_value(given.get('algorithm'))})", given, parents
    recipe, path = load_recipe(given), os.path.realpath(given)
    if path in parents:
        cycle = " -> ".join(map(os.path.relpath, [*parents[parents.index(path) :], path]))
        raise RecipeError(f"recipes that need each other cannot be merged: {cycle}")
    return str(given), recipe, (*parents, path)


@contextmanager
def name_errors(label: str) -> Iterator[None]:
    """Prefix errors with a recipe's label."""
    try:
        yield
    except FusionError as error:
        lines = error.message.splitlines()  # the rows of a table begin with a space
        named = (line if line.startswith(" ") else f"{label}: {line}" for line in lines)
        raise type(error)("\n".join(named), hint=error.hint) from error
