"""Which elements of a tensor share a coefficient, and the two products that follow from it.

With one coefficient per expert and tensor, the merge and the gradient of the coefficients are
matrix-vector products. One per expert and row makes them batches of such products, at the same
cost. One per expert and column is computed elementwise, in blocks that fit into a cache. One per
expert and singular component takes matrix products. A tensor is cut between elements, or between
rows if rows or columns share, or not at all if components do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from fusion_core.weights import Cut, decompose, is_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from fusion_core.weights import TensorInfo

#: What shares a coefficient: a tensor, one index of its first dimension (`row`) or of its second
#: (`column`), or of a matrix both, with their mean (`row+column`). Or a singular component of a
#: matrix: one of the largest, so few that those of all experts take the memory of one matrix
#: (`rank`), or any (`component`). Tensors without such parts have one coefficient per expert.
Grain = Literal["tensor", "row", "column", "row+column", "rank", "component"]

#: For eight experts, this many elements each, and this many sums each, stay in a core's cache.
_ADDED, _SUMMED = 2**18, 2**16
#: There, launching an operation costs more than reading its operands.
_ON_GPU = 2**22


@dataclass(frozen=True)
class Sharing(ABC):
    """One tensor's coefficients: `shape` is the shape of an expert's.

    It broadcasts over the tensor, or is a list: of rows and columns together, or of components.
    """

    info: TensorInfo
    cut: ClassVar[Cut]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of an expert's coefficients."""

    @property
    def count(self) -> int:
        """The number of coefficients per expert."""
        return math.prod(self.shape)

    @abstractmethod
    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Write base + coefficients * rows, summed over experts, into `out`.

        The arguments cover the part of the tensor that begins at element `start`: `base` and `out`
        have the shape (elements,), `rows` (experts, elements) and `coefficients` (experts, count).
        """

    @abstractmethod
    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return the products of a part's rows and gradient, summed per coefficient.

        Shapes (experts, elements) and (elements,) -> (experts, count), or the part's share of
        `count` if it holds some rows only.
        """

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the projections of all parts, in order: shape (experts, count)."""
        return torch.stack(list(parts)).sum(dim=0)


@dataclass(frozen=True)
class ByTensor(Sharing):
    """One coefficient per expert."""

    cut = Cut.ELEMENT
    shape = ()

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add a matrix-vector product to the base."""
        del start
        torch.addmv(base, rows.T, coefficients.reshape(-1), out=out)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return a matrix-vector product."""
        return (rows @ gradient).unsqueeze(1)


class _CutByRow(Sharing):
    """Coefficients of a tensor that is cut between rows."""

    cut = Cut.ROW

    @property
    def _row(self) -> int:
        """The number of elements per row."""
        return math.prod(self.info.shape[1:])


@dataclass(frozen=True)
class ByRow(_CutByRow):
    """One coefficient per expert and index of the first dimension: of a matrix, an output."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, 1, ...)."""
        return (self.info.shape[0], *[1] * (len(self.info.shape) - 1))

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add one vector-matrix product per row to the base."""
        first, matrices = start // self._row, self._matrices(rows)
        factors = coefficients[:, first : first + len(matrices)].T.contiguous().unsqueeze(1)
        shape = (len(matrices), 1, self._row)
        torch.baddbmm(base.view(shape), factors, matrices, out=out.view(shape))

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return one vector-matrix product per row."""
        matrices = self._matrices(rows)
        products = torch.bmm(gradient.view(len(matrices), 1, self._row), matrices.transpose(1, 2))
        return products.squeeze(1).T

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate the parts' rows."""
        return torch.cat(list(parts), dim=1)

    def _matrices(self, rows: Tensor) -> Tensor:
        """View all experts' rows as one matrix per row: (rows, experts, elements of a row)."""
        return rows.view(len(rows), -1, self._row).transpose(0, 1)


@dataclass(frozen=True)
class ByColumn(_CutByRow):
    """One coefficient per expert and index of the second dimension: of a matrix, an input."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, columns, 1, ...)."""
        return (1, self.info.shape[1], *[1] * (len(self.info.shape) - 2))

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add one expert after the other, some rows of the tensor at a time."""
        del start
        factors = coefficients.unsqueeze(-1)
        for part in self._parts(len(base), _ON_GPU if base.is_cuda else _ADDED):
            total, merged = self._cube(base[part]), self._cube(out[part])
            for row, factor in zip(rows[:, part], factors, strict=True):
                total = torch.addcmul(total, self._cube(row), factor, out=merged)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Sum elementwise products over blocks of rows, and then the rows of the sum."""
        parts = list(self._parts(len(gradient), _ON_GPU if rows.is_cuda else _SUMMED))
        sums = rows.new_zeros((len(rows), len(gradient[parts[0]])))
        for part in parts:
            factor = gradient[part]
            sums[:, : len(factor)].addcmul_(rows[:, part], factor)
        return sums.view(len(rows), -1, self.count, self._row // self.count).sum(dim=(1, 3))

    def _parts(self, elements: int, block: int) -> Iterator[slice]:
        step = max(1, block // self._row) * self._row
        return (slice(start, start + step) for start in range(0, elements, step))

    def _cube(self, values: Tensor) -> Tensor:
        """View elements as (rows, columns, elements per row and column)."""
        return values.view(-1, self.count, self._row // self.count)


@dataclass(frozen=True)
class ByRowAndColumn(_CutByRow):
    """One coefficient per expert and row of a matrix, and one per column; their mean applies.

    Those of rows come first.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows + columns,)."""
        return (sum(self.info.shape),)

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add the share of the rows' coefficients, and then that of the columns'."""
        by_row, by_column = torch.split(coefficients / 2, list(self.info.shape), dim=1)
        ByRow(self.info).combine(start, base, rows, by_row, out)
        ByColumn(self.info).combine(start, out, rows, by_column, out)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return half of both projections, next to each other."""
        kinds = ByRow(self.info), ByColumn(self.info)
        return torch.cat([kind.project(rows, gradient) for kind in kinds], dim=1) / 2

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate the parts' rows, and sum their columns."""
        columns = self.info.shape[1]
        by_row = torch.cat([part[:, :-columns] for part in parts], dim=1)
        by_column = torch.stack([part[:, -columns:] for part in parts]).sum(dim=0)
        return torch.cat([by_row, by_column], dim=1)


@dataclass(frozen=True)
class ByComponent(Sharing):
    """One coefficient per expert and singular component, and a last one for the remainder."""

    #: left singular vectors times singular values, shape (experts, components, rows)
    left: Tensor
    #: shape (experts, components, columns)
    right: Tensor
    cut = Cut.TENSOR

    @classmethod
    def of(cls, info: TensorInfo, rows: Tensor, count: int) -> ByComponent:
        """Decompose task vectors, of shape (experts, elements), into `count` components each.

        A task vector that has fewer gets components that are zero.
        """
        height, width = info.shape
        left, right = (
            rows.new_zeros(len(rows), count, height),
            rows.new_zeros(len(rows), count, width),
        )
        for number, row in enumerate(rows):
            parts = decompose(row.view(info.shape)).largest(count)
            left[number, : parts.rank] = (parts.left * parts.values).T
            right[number, : parts.rank] = parts.right.T
        return cls(info, left, right)

    @property
    def shape(self) -> tuple[int, ...]:
        """(components + 1,)."""
        return (self.left.shape[1] + 1,)

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Scale whole task vectors, and add the differences of their components' coefficients."""
        del start
        rest = coefficients[:, -1]
        torch.addmv(base, rows.T, rest, out=out)
        differences = (coefficients[:, :-1] - rest[:, None]).flatten()
        different = differences.nonzero().squeeze(1)  # the whole task vector serves the others
        left, right = self.left.flatten(0, 1)[different], self.right.flatten(0, 1)[different]
        out.view(self.info.shape).addmm_((left * differences[different, None]).T, right)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return u' G v times the singular value of each component, and the remainder."""
        products = (self.left.flatten(0, 1) @ gradient.view(self.info.shape)).view_as(self.right)
        components = (products * self.right).sum(dim=-1)
        whole = rows @ gradient
        return torch.cat([components, (whole - components.sum(dim=1)).unsqueeze(1)], dim=1)


def choose_sharing(info: TensorInfo, grain: Grain, read_rows: Callable[[], Tensor]) -> Sharing:
    """Return how a tensor's elements share coefficients.

    `read_rows` returns its task vectors, of shape (experts, elements). Only components need them.
    """
    if grain in {"rank", "component"} and is_matrix(info.shape):
        rows, components = read_rows(), min(info.shape)
        count = components if grain == "component" else max(1, components // len(rows))
        return ByComponent.of(info, rows, count)
    if grain == "row+column" and is_matrix(info.shape) and info.numel > 1:
        return ByRowAndColumn(info)
    kinds = {"row": ByRow, "column": ByColumn}
    has_rows = len(info.shape) > 1 and info.numel
    return (kinds.get(grain, ByTensor) if has_rows else ByTensor)(info)
