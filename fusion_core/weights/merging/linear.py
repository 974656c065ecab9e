"""Linear combinations of models: the kernel that most methods end in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.merging.applied import Kernel
from fusion_core.weights.merging.merged import MergedSource
from fusion_core.weights.merging.piece import Operands, Piece, in_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from fusion_core.weights.source import WeightSource


@dataclass(frozen=True)
class Linear(Kernel):
    """base + sum of coefficient * task vector; not `relative`: sum of coefficient * expert.

    `coefficients`: one an expert in pool order, for every tensor alike or by tensor name.
    """

    coefficients: tuple[float, ...] | Mapping[str, tuple[float, ...]]
    relative: bool = True

    def rows(self, piece: Piece) -> torch.Tensor:
        """Return what is combined, of shape (experts, ...)."""
        return piece.task_vectors if self.relative else piece.experts

    def merge(self, piece: Piece) -> torch.Tensor:
        """Combine one piece."""
        values = self.coefficients
        factors = values if isinstance(values, tuple) else values[piece.info.name]
        rows = self.rows(piece)
        combined = in_order(row * factor for row, factor in zip(rows, factors, strict=True))
        return combined.add_(piece.base) if self.relative else combined


def as_weights(source: WeightSource, base: WeightSource | None) -> WeightSource:
    """Return a source of weights: the source itself or, where it is differences, base + those."""
    if not source.is_delta:
        return source
    return MergedSource(Linear((1.0,)), Operands(base, {source.describe(): source}))
