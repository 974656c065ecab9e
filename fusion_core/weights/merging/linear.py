"""Linear combinations of models: the kernel that most methods end in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging.applied import Kernel
from fusion_core.weights.merging.merged import MergedSource
from fusion_core.weights.merging.outliers import LIMIT
from fusion_core.weights.merging.piece import Operands, Piece, in_order
from fusion_core.weights.merging.singular import by_component
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights.source import WeightSource

#: How many dimensions coefficients have that are a list an expert, and do not broadcast.
_LISTED = 2


@dataclass(frozen=True)
class Linear(Kernel):
    """base + sum of coefficient * task vector; not `relative`: sum of coefficient * expert.

    `coefficients`: one an expert in pool order, for every tensor alike or by tensor name; or, for a
    tensor of two dimensions or more, a tensor of shape (experts, ...) that broadcasts over all of
    the experts': (experts, rows, 1) holds one an expert and row. For a matrix, one of shape
    (experts, rows + columns) holds those of rows and of columns, of which an entry has the mean,
    and one of shape (experts, n + 1) those of each task vector's n largest singular components and,
    last, that of all that is left of it.
    """

    coefficients: tuple[float, ...] | Mapping[str, tuple[float, ...] | torch.Tensor]
    relative: bool = True

    @property
    def cut(self) -> Cut:
        """Between rows where coefficients belong to rows or columns, nowhere for lists of them."""
        values = self.coefficients
        every = () if isinstance(values, tuple) else values.values()
        several = [each.dim() for each in every if not isinstance(each, tuple)]
        if _LISTED in several:
            return Cut.TENSOR
        return Cut.ROW if several else Cut.ELEMENT

    @property
    def is_bounded(self) -> bool:
        """Whether no entry can be further away than the coefficients of all experts add up to."""
        values = self.coefficients
        every = (values,) if isinstance(values, tuple) else values.values()
        return all(_total(factors) <= LIMIT for factors in every)

    def rows(self, piece: Piece) -> torch.Tensor:
        """Return what is combined, of shape (experts, ...)."""
        return piece.task_vectors if self.relative else piece.experts

    def merge(self, piece: Piece) -> torch.Tensor:
        """Combine one piece."""
        rows = self.rows(piece)
        factors = self._factors(piece, rows)
        scaled = by_component if _are_listed(factors) else torch.mul
        combined = in_order(scaled(row, own) for row, own in zip(rows, factors, strict=True))
        return combined.add_(piece.base) if self.relative else combined

    def _factors(self, piece: Piece, rows: torch.Tensor) -> tuple[float, ...] | torch.Tensor:
        values = self.coefficients
        factors = values if isinstance(values, tuple) else values[piece.info.name]
        if isinstance(factors, tuple):
            return factors
        if _are_listed(factors) and factors.shape[1] == sum(piece.shape) > _LISTED:
            by_row, by_column = torch.split(factors, list(piece.shape), dim=1)
            factors = (by_row[:, :, None] + by_column[:, None, :]) / 2
        elif factors.shape[1] > 1 and not _are_listed(factors):
            first = piece.start // math.prod(piece.info.shape[1:])
            factors = factors[:, first : first + len(rows[0])]
        return factors.to(rows)


def _total(factors: tuple[float, ...] | torch.Tensor) -> float:
    """Return the sum over experts of the largest coefficient's magnitude."""
    if isinstance(factors, tuple):
        return sum(map(abs, factors))
    return factors.abs().flatten(1).amax(dim=1).sum().item()


def _are_listed(factors: tuple[float, ...] | torch.Tensor) -> bool:
    return not isinstance(factors, tuple) and factors.dim() == _LISTED


def as_weights(source: WeightSource, base: WeightSource | None) -> WeightSource:
    """Return a source of weights: the source itself or, where it is differences, base + those."""
    if not source.is_delta:
        return source
    return MergedSource(Linear((1.0,)), Operands(base, {source.describe(): source}))
