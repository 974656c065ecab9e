"""Which elements of a tensor share a coefficient, and the two products that follow from it.

One coefficient an expert and tensor makes the merge a product of a vector and a matrix, and so the
gradient of the coefficients. One an expert and row makes each of them a batch of such products, of
the same cost. One an expert and column is taken element by element, in blocks that stay in a cache.
One an expert and singular component takes a product of matrices. A tensor is cut into parts between
elements, between rows where rows or columns share, and not at all where components do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from fusion_core.weights import BLOCK, Cut, decompose, is_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from fusion_core.weights import TensorInfo

#: What shares a coefficient: a tensor, what lies at one index of its first dimension, or of its
#: second; of a matrix both, whose mean then counts, or a singular component: one of the largest,
#: which are so few that those of all experts take what one matrix does (`rank`), or of all
#: (`component`). Tensors that have no such parts have one coefficient an expert.
Grain = Literal["tensor", "row", "column", "row+column", "rank", "component"]

_SUMMED = BLOCK // 4  # so many sums an expert stay in a core's cache for eight experts
_SUMMED_ON_GPU = 16 * BLOCK  # there, starting an operation costs more than fetching its operands


@dataclass(frozen=True)
class Sharing(ABC):
    """One tensor's coefficients: `shape` is an expert's.

    It broadcasts over the tensor, or is a list: of rows and columns together, and of components.
    """

    info: TensorInfo
    cut: ClassVar[Cut]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of an expert's coefficients."""

    @property
    def count(self) -> int:
        """How many coefficients an expert has."""
        return math.prod(self.shape)

    @abstractmethod
    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Write base + coefficients * rows, summed over experts, into `out`.

        Of the part of the tensor that begins at element `start`: `base` and `out` have the shape
        (elements,), `rows` (experts, elements), and `coefficients` (experts, count).
        """

    @abstractmethod
    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return a part's products of rows and gradient, summed over what shares a coefficient.

        Shapes (experts, elements) and (elements,) -> (experts, count), but of the part's rows only.
        """

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Join what the parts' projections are, in order: shape (experts, count)."""
        return torch.stack(list(parts)).sum(dim=0)


@dataclass(frozen=True)
class ByTensor(Sharing):
    """One coefficient an expert."""

    cut = Cut.ELEMENT
    shape = ()

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add to the base what a product of a matrix and a vector gives."""
        del start
        torch.addmv(base, rows.T, coefficients.reshape(-1), out=out)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return one product of a matrix and a vector."""
        return (rows @ gradient).unsqueeze(1)


class _WithinRows(Sharing):
    """Coefficients of a tensor that is cut between rows."""

    cut = Cut.ROW

    @property
    def _row(self) -> int:
        """The elements of a row."""
        return math.prod(self.info.shape[1:])


@dataclass(frozen=True)
class ByRow(_WithinRows):
    """One coefficient an expert and index of the first dimension: of a matrix, an output."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, 1, ...)."""
        return (self.info.shape[0], *[1] * (len(self.info.shape) - 1))

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add to the base what a product of a matrix and a vector a row gives."""
        first, matrices = start // self._row, self._matrices(rows)
        own = coefficients[:, first : first + len(matrices)].T.contiguous().unsqueeze(1)
        shape = (len(matrices), 1, self._row)
        torch.baddbmm(base.view(shape), own, matrices, out=out.view(shape))

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return one product of a matrix and a vector a row."""
        matrices = self._matrices(rows)
        products = torch.bmm(gradient.view(len(matrices), 1, self._row), matrices.transpose(1, 2))
        return products.squeeze(1).T

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Put the parts' rows one after the other."""
        return torch.cat(list(parts), dim=1)

    def _matrices(self, rows: Tensor) -> Tensor:
        """See all experts' rows as a matrix a row: (rows, experts, elements of a row)."""
        return rows.view(len(rows), -1, self._row).transpose(0, 1)


@dataclass(frozen=True)
class ByColumn(_WithinRows):
    """One coefficient an expert and index of the second dimension: of a matrix, an input."""

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
        for part in self._parts(len(base), _SUMMED_ON_GPU if base.is_cuda else BLOCK):
            total, merged = self._cube(base[part]), self._cube(out[part])
            for row, factor in zip(rows[:, part], factors, strict=True):
                total = torch.addcmul(total, self._cube(row), factor, out=merged)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Sum products element by element over blocks of rows, and the rows of the sum."""
        parts = list(self._parts(len(gradient), _SUMMED_ON_GPU if rows.is_cuda else _SUMMED))
        sums = rows.new_zeros((len(rows), len(gradient[parts[0]])))
        for part in parts:
            factor = gradient[part]
            sums[:, : len(factor)].addcmul_(rows[:, part], factor)
        return sums.view(len(rows), -1, self.count, self._row // self.count).sum(dim=(1, 3))

    def _parts(self, elements: int, block: int) -> Iterator[slice]:
        step = max(1, block // self._row) * self._row
        return (slice(start, start + step) for start in range(0, elements, step))

    def _cube(self, values: Tensor) -> Tensor:
        """See elements as (rows, columns, what an entry of a matrix is where there are more)."""
        return values.view(-1, self.count, self._row // self.count)


@dataclass(frozen=True)
class ByRowAndColumn(_WithinRows):
    """One coefficient an expert and row of a matrix, and one a column; an entry has their mean.

    Those of rows come first.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows + columns,)."""
        return (sum(self.info.shape),)

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Add what the coefficients of rows give, and then those of columns."""
        by_row, by_column = torch.split(coefficients / 2, list(self.info.shape), dim=1)
        ByRow(self.info).combine(start, base, rows, by_row, out)
        ByColumn(self.info).combine(start, out, rows, by_column, out)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return half of both projections, side by side."""
        kinds = ByRow(self.info), ByColumn(self.info)
        return torch.cat([kind.project(rows, gradient) for kind in kinds], dim=1) / 2

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Put the parts' rows one after the other, and add their columns."""
        columns = self.info.shape[1]
        by_row = torch.cat([part[:, :-columns] for part in parts], dim=1)
        by_column = torch.stack([part[:, -columns:] for part in parts]).sum(dim=0)
        return torch.cat([by_row, by_column], dim=1)


@dataclass(frozen=True)
class ByComponent(Sharing):
    """One coefficient an expert and singular component, and a last one for what is left of it."""

    #: left singular vectors times singular values, shape (experts, components, rows)
    left: Tensor
    #: shape (experts, components, columns)
    right: Tensor
    cut = Cut.TENSOR

    @classmethod
    def of(cls, info: TensorInfo, rows: Tensor, count: int) -> ByComponent:
        """Decompose task vectors, of shape (experts, elements), into `count` components each."""
        found = [decompose(row.view(info.shape)).largest(count) for row in rows]
        left = [(each.left * each.values).T for each in found]
        return cls(info, torch.stack(left), torch.stack([each.right.T for each in found]))

    @property
    def shape(self) -> tuple[int, ...]:
        """(components + 1,)."""
        return (self.left.shape[1] + 1,)

    def combine(
        self, start: int, base: Tensor, rows: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """Scale task vectors as wholes, and add what their components have more or less."""
        del start
        rest = coefficients[:, -1]
        torch.addmv(base, rows.T, rest, out=out)
        more = (coefficients[:, :-1] - rest[:, None]).flatten()
        apart = more.nonzero().squeeze(1)  # the others are in the task vector as they should be
        left, right = self.left.flatten(0, 1)[apart], self.right.flatten(0, 1)[apart]
        out.view(self.info.shape).addmm_((left * more[apart, None]).T, right)

    def project(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return u' G v times the singular value of each component; the rest is what is left."""
        products = (self.left.flatten(0, 1) @ gradient.view(self.info.shape)).view_as(self.right)
        own = (products * self.right).sum(dim=-1)
        whole = rows @ gradient
        return torch.cat([own, (whole - own.sum(dim=1)).unsqueeze(1)], dim=1)


def sharing_of(info: TensorInfo, grain: Grain, read: Callable[[], Tensor]) -> Sharing:
    """Return how a tensor's elements share coefficients.

    `read` returns its task vectors, of shape (experts, elements): for components, which depend on
    them.
    """
    if grain in {"rank", "component"} and is_matrix(info.shape):
        return _by_component(info, grain, read())
    if grain == "row+column" and is_matrix(info.shape) and info.numel > 1:
        return ByRowAndColumn(info)
    kinds = {"row": ByRow, "column": ByColumn}
    has_rows = len(info.shape) > 1 and info.numel
    return (kinds.get(grain, ByTensor) if has_rows else ByTensor)(info)


def _by_component(info: TensorInfo, grain: Grain, rows: Tensor) -> ByComponent:
    every = min(info.shape)
    return ByComponent.of(info, rows, every if grain == "component" else max(1, every // len(rows)))
