"""Tensors that a stage treats otherwise than its name says, told before any work is done."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.weights.merging.piece import is_merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.contracts.stage import Stage
    from fusion_core.planning.pipeline import PlannedStage
    from fusion_core.weights import TensorInfo
    from fusion_core.weights.packing import Layout

#: The share of a model's parameters from which on a fallback is a warning.
_NOTABLE = 0.01


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tensors to which a method does not apply, and what the stage does with them instead."""

    stage: str
    treatment: str
    tensors: int
    #: of the parameters that are merged, between 0 and 1
    share: float
    #: the largest of these tensors
    example: str

    @property
    def is_notable(self) -> bool:
        """Whether enough of the model is concerned to warn of it."""
        return self.share >= _NOTABLE

    def __str__(self) -> str:
        share = f"{self.share:.0%}" if self.is_notable else f"{self.share:.2%}"
        share = share.replace("%", " %")
        noun = "tensor" if self.tensors == 1 else "tensors"
        return (
            f"{self.stage} does not apply to {self.tensors} {noun} ({share} of the parameters, "
            f"the largest: {self.example}): {self.treatment}"
        )


def fallbacks_of(
    stages: Sequence[PlannedStage], infos: Mapping[str, TensorInfo], layout: Layout
) -> Iterator[Fallback]:
    """Yield, for each stage and treatment, the tensors that the stage does not apply to.

    A tensor that holds several matrices counts by those to which it does not apply.
    """
    merged = {name: info for name, info in infos.items() if is_merged(info)}
    total = sum(info.numel for info in merged.values())
    for stage in stages:
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for part in stage.parts:
            for name in merged if part.names is None else merged.keys() & part.names:
                for treatment, numel in _treatments(part.algorithm, merged[name], layout):
                    groups[treatment][name] += numel
        for treatment, elements in sorted(groups.items()):
            largest = max(elements, key=lambda name: (elements[name], name))
            share = elements.total() / max(total, 1)
            yield Fallback(stage.name, treatment, len(elements), share, largest)


def _treatments(stage: Stage[Any], info: TensorInfo, layout: Layout) -> Iterator[tuple[str, int]]:
    """Yield what a stage does instead with a tensor's elements, and with how many of them."""
    for matrix in (info,) if stage.sees_stored_tensors else layout.infos_of(info):
        if (treatment := stage.fallback(matrix)) is not None:
            yield treatment, matrix.numel
