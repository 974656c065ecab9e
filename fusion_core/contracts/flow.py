"""The models and the merge that one stage of a pipeline passes on to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.selected_pool import SelectedPool
from fusion_core.weights import AlignedSource, RenamedSource, WeightSource
from fusion_core.weights.merging.transforms import IdentityTransform

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool

    #: `Stage.apply`
    Apply = Callable[["Flow", RunContext], "Flow"]

#: Maps a merge of coordinates back to weights.
Restore = Callable[[WeightSource], WeightSource]


@dataclass(frozen=True)
class Flow:
    """The state that a stage receives and returns.

    A transform replaces `models`. A merge and a calibration replace `merged`:
    `dataclasses.replace(flow, merged=...)`.
    """

    #: the models after the transforms so far
    models: ModelPool[Any]
    #: the models before any transform
    originals: ModelPool[Any]
    #: the merge so far; before the merge stage, the base or the first expert
    merged: WeightSource
    #: one inverse per transform into other coordinates, in the order of the transforms
    restores: tuple[Restore, ...] = ()
    #: the number of stages applied so far
    stage_index: int = 0
    #: the recipe sections of the transforms applied so far, with the options that they chose
    transforms: tuple[Mapping[str, Any], ...] = ()
    #: the options that the transform applied last has chosen by the tasks
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, pool: ModelPool[Any]) -> Flow:
        """Return the flow that enters the first stage."""
        return cls(pool, pool, pool.reference)

    def restore(self, merged: WeightSource) -> WeightSource:
        """Map a merge of `models` back to weights, through all coordinates."""
        for restore in reversed(self.restores):
            merged = restore(merged)
        return merged

    def apply_to(self, names: Collection[str], apply: Apply, context: RunContext) -> Flow:
        """Apply a stage as if the models had only the tensors in `names`; keep all others."""
        selected = self._select(names)
        result = apply(selected, context)
        models, merged = self.models, self.merged
        if result.models is not selected.models:
            models = _overlay(result.models, models, context)
        if result.merged is not selected.merged:
            merged = AlignedSource(result.merged, merged)
        added: list[Restore] = [
            partial(_restore_selected, restore, names)
            for restore in result.restores[len(selected.restores) :]
        ]
        restores = (*self.restores, *added)
        chosen = result.chosen
        return replace(self, models=models, merged=merged, restores=restores, chosen=chosen)

    def _select(self, names: Collection[str]) -> Flow:
        models = SelectedPool(self.models, names)
        is_original = self.models is self.originals
        return replace(
            self,
            models=models,
            originals=models if is_original else SelectedPool(self.originals, names),
            merged=_select_tensors(self.merged, names),
            restores=tuple(
                partial(_restore_all, restore, self.merged) for restore in self.restores
            ),
        )


def _select_tensors(source: WeightSource, names: Collection[str]) -> WeightSource:
    return RenamedSource(source, {name: name for name in source.infos if name in names})


def _restore_selected(
    restore: Restore, names: Collection[str], merged: WeightSource
) -> WeightSource:
    """Restore the tensors in `names`; the others were never mapped to coordinates."""
    return AlignedSource(restore(_select_tensors(merged, names)), merged)


def _restore_all(restore: Restore, others: WeightSource, merged: WeightSource) -> WeightSource:
    """Restore a merge of some tensors by a `restore` that expects all of them."""
    return _select_tensors(restore(AlignedSource(merged, others)), merged.infos)


def _overlay(part: ModelPool[Any], pool: ModelPool[Any], context: RunContext) -> ModelPool[Any]:
    """Return the pool with the part's tensors in place of its own."""
    if any(part.by_name[name].is_delta != source.is_delta for name, source in pool.by_name.items()):
        pool = context.transform(
            pool, IdentityTransform()
        )  # task vectors cannot be mixed with weights
    return pool.with_sources(
        {name: AlignedSource(part.by_name[name], source) for name, source in pool.by_name.items()}
    )
