"""The models and the merge that the stages of a pipeline hand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.selected_pool import SelectedPool
from fusion_core.weights import AlignedSource, RenamedSource, WeightSource
from fusion_core.weights.merging.transformed import Unchanged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool

    #: `Stage.apply`
    Apply = Callable[["Flow", RunContext], "Flow"]

#: Turns a merge of coordinates into a merge of weights.
WayBack = Callable[[WeightSource], WeightSource]


@dataclass(frozen=True)
class Flow:
    """What a stage receives, and returns with other `models` or another `merged`.

    A transform replaces the models, a merge and a calibration replace `merged`:
    `dataclasses.replace(flow, merged=...)`.
    """

    #: the models as the transforms before have left them
    models: ModelPool[Any]
    #: the models before any transform
    originals: ModelPool[Any]
    #: the merge so far; before the merge stage, the base or the first expert
    merged: WeightSource
    #: one per transform into other coordinates, in the order of the transforms
    ways_back: tuple[WayBack, ...] = ()
    #: how many stages came before
    place: int = 0
    #: the recipe sections of the transforms that came before
    transforms: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, pool: ModelPool[Any]) -> Flow:
        """Return the flow that enters the first stage."""
        return cls(pool, pool, pool.reference)

    def restore(self, merged: WeightSource) -> WeightSource:
        """Turn a merge of `models` into weights, through all coordinates."""
        for way_back in reversed(self.ways_back):
            merged = way_back(merged)
        return merged

    def apply_to(self, names: Collection[str], apply: Apply, context: RunContext) -> Flow:
        """Apply a stage to some tensors as if the models had no others, and keep the others."""
        selected = self._select(names)
        result = apply(selected, context)
        models, merged = self.models, self.merged
        if result.models is not selected.models:
            models = _overlay(result.models, models, context)
        if result.merged is not selected.merged:
            merged = AlignedSource(result.merged, merged)
        added = result.ways_back[len(selected.ways_back) :]
        lifted: list[WayBack] = [partial(_restore_some, way, names) for way in added]
        return replace(self, models=models, merged=merged, ways_back=(*self.ways_back, *lifted))

    def _select(self, names: Collection[str]) -> Flow:
        models = SelectedPool(self.models, names)
        is_original = self.models is self.originals
        return replace(
            self,
            models=models,
            originals=models if is_original else SelectedPool(self.originals, names),
            merged=_only(self.merged, names),
            ways_back=tuple(partial(_restore_within, way, self.merged) for way in self.ways_back),
        )


def _only(source: WeightSource, names: Collection[str]) -> WeightSource:
    return RenamedSource(source, {name: name for name in source.infos if name in names})


def _restore_some(way_back: WayBack, names: Collection[str], merged: WeightSource) -> WeightSource:
    """Restore some tensors; the others are in no coordinates."""
    return AlignedSource(way_back(_only(merged, names)), merged)


def _restore_within(way_back: WayBack, others: WeightSource, merged: WeightSource) -> WeightSource:
    """Restore a merge of some tensors by a way back that expects all of them."""
    return _only(way_back(AlignedSource(merged, others)), merged.infos)


def _overlay(part: ModelPool[Any], pool: ModelPool[Any], context: RunContext) -> ModelPool[Any]:
    """Return a pool whose models have a part's tensors where the part has them."""
    if any(part.by_name[name].is_delta != source.is_delta for name, source in pool.by_name.items()):
        pool = context.transformed(pool, Unchanged())  # task vectors do not mix with weights
    return pool.with_sources(
        {name: AlignedSource(part.by_name[name], source) for name, source in pool.by_name.items()}
    )
