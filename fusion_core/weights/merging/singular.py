"""Singular components and polar factors, by the smaller Gram matrix.

The eigenvectors of the smaller of X'X and XX', taken in fp64, are the singular vectors of one side.
A product gives those of the other side. On a CPU this takes about as long as LAPACK's SVD.
Newton-Schulz, the usual way to a polar factor without either, takes more than three times as long
(benchmarks/spectral.py), and cannot tell a direction that is zero from one that is rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from fusion_core.weights.merging.result_cache import shared_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Singular values below this fraction of the largest one are rounding in fp32: they count as zero.
_ROUNDING = 1e-6
#: How many rows are held in fp64 at once.
_ROWS = 4096
_MATRIX = 2


class Components(NamedTuple):
    """Singular components, the largest first: their sum is left @ diag(values) @ right.T.

    Shapes: (m, r), (r,), (n, r). Where a value is zero, its left or right vector is zero as well,
    not arbitrary.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Count the values that are not zero: the numerical rank, min(m, n) at most."""
        return int(self.values.count_nonzero())

    def largest(self, count: int) -> Components:
        """Return the first `count` components, or all if there are fewer."""
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
    (factor,) = shared_tensors(matrix, "polar", lambda matrix: (_polar(matrix),))
    return factor


def joint_rank(rows: Tensor) -> int:
    """Return the numerical rank of matrices (experts, m, n) side by side, min(m, n) at most.

    Matrices with m > n are stacked below each other instead. The rank is min(m, n) where one matrix
    has full rank, and often the sum of the ranks of adapters.
    """
    _, height, width = rows.shape
    tall = (rows.mT if height <= width else rows).flatten(0, 1)
    (values,) = shared_tensors(tall, "values", lambda matrix: (_spectrum(matrix)[0],))
    return int(values.count_nonzero())


def _decompose(matrix: Tensor) -> Components:
    rows, columns = matrix.shape
    if rows < columns:
        right, values, left = _decompose(matrix.mT)
        return Components(left, values, right)
    values, basis = _spectrum(matrix)
    left = _multiply_wide(matrix, basis * _inverse(values))
    return Components(left, values.to(matrix.dtype), basis.to(matrix.dtype))


def _polar(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    if rows < columns:
        return _polar(matrix.mT).mT
    values, basis = _spectrum(matrix)
    return _multiply_wide(matrix, (basis * _inverse(values)) @ basis.mT)


def scale_components(matrix: Tensor, factors: Tensor) -> Tensor:
    """Multiply a matrix's c largest singular components by factors, and the rest by the last one.

    Shapes: (m, n) and (c + 1,). The matrix is scaled as a whole and only components are added, so
    that equal factors do nothing but scale it.
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
    is_nonzero = squares > squares[0] * _ROUNDING**2
    return squares.where(is_nonzero, 0).sqrt(), basis


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)


def _multiply_wide(tall: Tensor, square: Tensor) -> Tensor:
    """Multiply in fp64, a few rows at a time; an inverse root holds large numbers that cancel."""
    return torch.cat(
        [(block.double() @ square).to(tall.dtype) for block in torch.split(tall, _ROWS)]
    )
