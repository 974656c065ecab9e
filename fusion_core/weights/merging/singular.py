"""Singular components and polar factors, by the smaller Gram matrix.

The eigenvectors of the smaller of X'X and XX', taken in fp64, are one side's singular vectors, and
a product gives the other's. On a CPU that takes about as long as LAPACK's SVD, and Newton-Schulz,
the usual way to a polar factor without either, more than three times as long
(benchmarks/spectral.py). Nor can Newton-Schulz tell a direction that is zero from one that is
rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from fusion_core.weights.merging.shared import shared_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Singular values below this fraction of the largest one are rounding in fp32, and count as zero.
_ROUNDING = 1e-6
#: How many rows are in fp64 at once.
_ROWS = 4096
_MATRIX = 2


class Components(NamedTuple):
    """Singular components, the largest first: their sum is left @ diag(values) @ right.T.

    Shapes: (m, r), (r,), (n, r). Where a value is zero, a left or right vector is, too: nothing
    arbitrary takes its place.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Count the values that are not zero: the numerical rank, min(m, n) at most."""
        return int(self.values.count_nonzero())

    def largest(self, count: int) -> Components:
        """Return the first components; all, if there are no more."""
        return Components(self.left[:, :count], self.values[:count], self.right[:, :count])

    def product(self) -> Tensor:
        """Return the matrix that these components add up to, of shape (m, n)."""
        product: Tensor = (self.left * self.values) @ self.right.mT
        return product


def is_matrix(shape: Sequence[int]) -> bool:
    """Tell whether a tensor of this shape has singular values."""
    return len(shape) == _MATRIX and all(shape)


def decompose(matrix: Tensor) -> Components:
    """Return all min(m, n) singular components of a matrix (m, n), in its dtype."""
    return Components(*shared_tensors(matrix, "components", _decompose))


def polar(matrix: Tensor) -> Tensor:
    """Return U V' of U S V': every singular value becomes 1, or stays 0."""
    (factor,) = shared_tensors(matrix, "polar", lambda each: (_polar(each),))
    return factor


def joint_rank(rows: Tensor) -> int:
    """Return the numerical rank of matrices (experts, m, n) side by side, min(m, n) at most.

    They stand beside each other where m <= n, and below each other where m > n. That is min(m, n)
    where one matrix has full rank, and often the sum of the ranks of adapters.
    """
    _, rows_of_each, columns = rows.shape
    tall = (rows.mT if rows_of_each <= columns else rows).flatten(0, 1)
    (values,) = shared_tensors(tall, "values", lambda joined: (_spectrum(joined)[0],))
    return int(values.count_nonzero())


def _decompose(matrix: Tensor) -> Components:
    rows, columns = matrix.shape
    if rows < columns:
        right, values, left = _decompose(matrix.mT)
        return Components(left, values, right)
    values, basis = _spectrum(matrix)
    left = _times(matrix, basis * _inverse(values))
    return Components(left, values.to(matrix.dtype), basis.to(matrix.dtype))


def _polar(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    if rows < columns:
        return _polar(matrix.mT).mT
    values, basis = _spectrum(matrix)
    return _times(matrix, (basis * _inverse(values)) @ basis.mT)


def by_component(matrix: Tensor, factors: Tensor) -> Tensor:
    """Return a matrix with its n largest components times factors, and the rest times the last.

    Shapes: (m, n) and (n + 1,). What is added to the matrix is of the components alone, so that
    equal factors only scale it.
    """
    rest = factors[-1]
    left, values, right = decompose(matrix).largest(len(factors) - 1)
    return torch.addmm(matrix * rest, left * (values * (factors[:-1] - rest)), right.mT)


def _spectrum(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and right singular vectors of (m, n), m >= n, in fp64."""
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for block in torch.split(tall, _ROWS):
        wide = block.double()
        gram.addmm_(wide.mT, wide)
    squares, basis = torch.linalg.eigh(gram)
    squares, basis = squares.flip(0), basis.flip(1)
    kept = squares > squares[0] * _ROUNDING**2
    return squares.where(kept, 0).sqrt(), basis


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)


def _times(tall: Tensor, square: Tensor) -> Tensor:
    """Multiply in fp64, a few rows at a time: an inverse root holds large numbers that cancel."""
    return torch.cat(
        [(block.double() @ square).to(tall.dtype) for block in torch.split(tall, _ROWS)]
    )
