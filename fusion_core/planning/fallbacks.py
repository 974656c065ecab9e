"""Tensors that a stage treats otherwise than its name says, told before any work is done."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.merging.piece import is_merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.planning.pipeline import PlannedStage
    from fusion_core.weights import TensorInfo

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
    stages: Sequence[PlannedStage], infos: Mapping[str, TensorInfo]
) -> Iterator[Fallback]:
    """Yield, for each stage and treatment, the tensors that the stage does not apply to."""
    merged = {name: info for name, info in infos.items() if is_merged(info)}
    total = sum(info.numel for info in merged.values())
    for stage in stages:
        groups: dict[str, list[TensorInfo]] = defaultdict(list)
        for part in stage.parts:
            for name in merged if part.names is None else merged.keys() & part.names:
                treatment = part.algorithm.fallback(merged[name])
                if treatment is not None:
                    groups[treatment].append(merged[name])
        for treatment, tensors in sorted(groups.items()):
            largest = max(tensors, key=lambda info: (info.numel, info.name))
            share = sum(info.numel for info in tensors) / max(total, 1)
            yield Fallback(stage.name, treatment, len(tensors), share, largest.name)
