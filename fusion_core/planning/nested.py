"""A recipe in the place of a model: what it would merge is an operand, without a file in between.

Recipes are planned with the run that names them (`fusion_core.planning.plan`), which puts what they
merge in their places (`fusion_core.running`). Their results are not rounded unless they say
`output.dtype`; the rest of their `output` says where a run of their own would write, and means
nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import BrokenPluginError
from fusion_core.weights import WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import TensorInfo


@dataclass(frozen=True, eq=False, repr=False)
class RecipeSource(WeightSource):
    """The place of what another recipe merges: known from headers, and never read."""

    label: str
    infos: Mapping[str, TensorInfo]
    #: the recipe's models, as they are and aligned
    pool: ModelPool[Any]
    aligned: ModelPool[Any]
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

    def inputs(self) -> Mapping[str, Any]:
        """Identify what the recipe merges."""
        return self.pool.inputs()

    def __repr__(self) -> str:
        return f"<{self.label}>"


def infos_of_merge(pool: ModelPool[Any], stored: torch.dtype | None) -> dict[str, TensorInfo]:
    """Describe a merge before it is made: fp32, or fp64 where an operand is, unless rounded."""
    sources = [pool.reference, *pool.experts.values()]

    def computed(name: str) -> torch.dtype:
        if stored is not None:
            return stored
        found = (source.infos[name].dtype for source in sources if name in source.infos)
        return torch.float64 if torch.float64 in found else torch.float32

    return {
        name: replace(info, dtype=computed(name)) if info.dtype.is_floating_point else info
        for name, info in pool.reference.infos.items()
    }
