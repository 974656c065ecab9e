"""A recipe in the place of a model: what it would merge is an operand, without a file in between.

Recipes are planned with the run that names them (`fusion_core.planning.plan`) and merged with it
(`fusion_core.running`). Their results are not rounded unless they say `output.dtype`; the rest of
their `output` says where a run of their own would write, and means nothing here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.planning.result import dtype_of
from fusion_core.weights import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.plan import Plan
    from fusion_core.weights import TensorInfo


class RecipeSource(WeightSource):
    """What another recipe merges: described from headers, and readable once it was started.

    Raises `AlignmentError` if the recipe's models do not fit together.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        recipe = plan.resolved.recipe
        self.infos = _infos(plan.pool.aligned(recipe.alignment), dtype_of(recipe.output.dtype))
        #: what its algorithm saved beside the model
        self.side_files: Mapping[str, bytes] = {}
        self._label = f"merge by {plan.algorithm_name}"
        self._merged: WeightSource | None = None

    def recipe_in(self, folder: Path | None) -> Mapping[str, Any]:
        """Return the recipe, resolved, with paths as a recipe in `folder` names them."""
        return self.plan.recipe_in(folder)

    def inputs(self) -> Mapping[str, Any]:
        """Identify what the recipe merges."""
        return self.plan.pool.inputs()

    def start(self, merged: WeightSource, side_files: Mapping[str, bytes]) -> None:
        """Take what the recipe's algorithm returned."""
        self._merged, self.side_files = merged, side_files
        self.infos, self.cut = merged.infos, merged.cut

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read what the recipe merges; only after `start`."""
        assert self._merged is not None  # noqa: S101 - a run starts it before it reads
        return self._merged.read(name, start, stop)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The merge or, before it was started, what will be merged."""
        if self._merged is not None:
            return (self._merged,)
        return tuple(self.plan.pool.by_name.values())

    def describe(self) -> str:
        """Name the algorithm."""
        return self._label

    def __repr__(self) -> str:
        return f"<{self._label}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plan": None, "side_files": {}}  # a worker reads, and no more


def nested_in(pool: ModelPool[Any]) -> dict[str, RecipeSource]:
    """Return the recipes in the places of a pool's models, by the model's name, `base` included.

    Each once: a base's is not its adapters' too.
    """
    found: dict[str, RecipeSource] = {}
    for name, source in pool.by_name.items():
        for each in _recipes(source):
            if each not in found.values():
                found[name] = each
    return found


def _recipes(source: WeightSource) -> Iterator[RecipeSource]:
    if isinstance(source, RecipeSource):
        yield source
        return
    for each in source.sources:
        yield from _recipes(each)


def _infos(pool: ModelPool[Any], stored: torch.dtype | None) -> dict[str, TensorInfo]:
    """Describe a merge before it is made: fp32, or fp64 where an operand is, unless rounded."""
    sources = [pool.reference, *pool.experts.values()]

    def computed(name: str) -> torch.dtype:
        if stored is not None:
            return stored
        found = (each.infos[name].dtype for each in sources if name in each.infos)
        return torch.float64 if torch.float64 in found else torch.float32

    return {
        name: replace(info, dtype=computed(name)) if info.dtype.is_floating_point else info
        for name, info in pool.reference.infos.items()
    }
