"""Linear combinations of models: the kernel that most methods end in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging.kernels import Kernel
from fusion_core.weights.merging.merged_source import MergedSource
from fusion_core.weights.merging.outliers import LIMIT
from fusion_core.weights.merging.piece import Operands, Piece, sum_in_order
from fusion_core.weights.merging.singular import scale_components
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.weights.source import WeightSource

    Factors = tuple[float, ...] | torch.Tensor

#: The number of dimensions of a list of coefficients per expert, which does not broadcast.
_LISTED = 2


@dataclass(frozen=True)
class Linear(Kernel):
    """base + sum of coefficient * task vector; not `relative`: sum of coefficient * expert.

    `coefficients` are one per expert in pool order, for all tensors or by tensor name. For a tensor
    of two dimensions or more they may be a tensor of shape (experts, ...) that broadcasts over the
    experts' tensors: (experts, rows, 1) holds one per expert and row. For a matrix there are two
    more shapes. (experts, rows + columns) holds those of rows and those of columns; an entry has
    the mean of its two. (experts, n + 1) holds those of each task vector's n largest singular
    components and, last, that of the rest.
    """

    coefficients: tuple[float, ...] | Mapping[str, Factors]
    relative: bool = True

    @property
    def cut(self) -> Cut:
        """Rows where coefficients belong to rows or columns, whole tensors where they are lists."""
        dimensions = {
            factors.dim() for factors in self._all_factors() if not isinstance(factors, tuple)
        }
        if _LISTED in dimensions:
            return Cut.TENSOR
        return Cut.ROW if dimensions else Cut.ELEMENT

    @property
    def is_bounded(self) -> bool:
        """Whether the largest coefficients of all experts add up to no more than the limit."""
        return all(_total(factors) <= LIMIT for factors in self._all_factors())

    def rows(self, piece: Piece) -> torch.Tensor:
        """Return the tensors that the merge combines, of shape (experts, ...)."""
        return piece.task_vectors if self.relative else piece.experts

    def merge(self, piece: Piece) -> torch.Tensor:
        """Combine one piece."""
        rows = self.rows(piece)
        factors = self._factors(piece, rows)
        scale = scale_components if _are_listed(factors) else torch.mul
        combined = sum_in_order(
            scale(row, factor) for row, factor in zip(rows, factors, strict=True)
        )
        return combined.add_(piece.base) if self.relative else combined

    def constant_coefficients(self, name: str) -> tuple[float, ...] | None:
        """Return the coefficients of a tensor if they are numbers.

        A weighted sum of experts is one of task vectors if its coefficients add up to 1.
        """
        values = self.coefficients
        factors = values if isinstance(values, tuple) else values[name]
        if not isinstance(factors, tuple):
            return None
        return factors if self.relative or math.isclose(sum(factors), 1.0) else None

    def _factors(self, piece: Piece, rows: torch.Tensor) -> Factors:
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

    def _all_factors(self) -> list[Factors]:
        values = self.coefficients
        return [values] if isinstance(values, tuple) else list(values.values())


def _total(factors: Factors) -> float:
    """Return the sum over experts of the largest coefficient's magnitude."""
    if isinstance(factors, tuple):
        return sum(map(abs, factors))
    return factors.abs().flatten(1).amax(dim=1).sum().item()


def _are_listed(factors: Factors) -> bool:
    return not isinstance(factors, tuple) and factors.dim() == _LISTED


def as_weights(source: WeightSource, base: WeightSource | None) -> WeightSource:
    """Return a source of weights: the source itself or, if it holds differences, base + those."""
    if not source.is_delta:
        return source
    return MergedSource(Linear((1.0,)), Operands(base, {source.describe(): source}))
