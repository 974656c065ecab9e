"""Tensors that a stage's method does not apply to, found from headers."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.merging.piece import is_merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.planning.pipeline import PlannedStage
    from fusion_core.weights import TensorInfo
    from fusion_core.weights.packing import Layout

#: The share of the parameters from which a fallback is a warning.
_NOTABLE = 0.01


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tensors that a stage's method does not apply to, and how the stage treats them instead."""

    stage: str
    treatment: str
    #: the number of tensors
    tensors: int
    #: their share of the merged parameters, between 0 and 1
    share: float
    #: the name of the largest of these tensors
    example: str

    @property
    def is_notable(self) -> bool:
        """Whether the share is large enough for a warning."""
        return self.share >= _NOTABLE

    def __str__(self) -> str:
        share = f"{self.share:.0%}" if self.is_notable else f"{self.share:.2%}"
        share = share.replace("%", " %")
        noun = "tensor" if self.tensors == 1 else "tensors"
        return (
            f"{self.stage} does not apply to {self.tensors} {noun} ({share} of the parameters, "
            f"the largest: {self.example}): {self.treatment}"
        )


def find_fallbacks(
    stages: Sequence[PlannedStage], infos: Mapping[str, TensorInfo], layout: Layout
) -> Iterator[Fallback]:
    """Yield one fallback per stage and treatment.

    Only those matrices of a tensor count that the method does not apply to.
    """
    merged = {name: info for name, info in infos.items() if is_merged(info)}
    total = sum(info.numel for info in merged.values())
    for planned in stages:
        elements: dict[str, Counter[str]] = defaultdict(Counter)  # by treatment and tensor
        for part in planned.parts:
            stage = part.algorithm
            for name in merged if part.names is None else merged.keys() & part.names:
                info = merged[name]
                for matrix in (
                    (info,) if stage.uses_stored_tensors else layout.describe_matrices(info)
                ):
                    if (treatment := stage.fallback(matrix)) is not None:
                        elements[treatment][name] += matrix.numel
        for treatment, by_tensor in sorted(elements.items()):
            largest = max(by_tensor, key=lambda name: (by_tensor[name], name))
            share = by_tensor.total() / max(total, 1)
            yield Fallback(planned.name, treatment, len(by_tensor), share, largest)
