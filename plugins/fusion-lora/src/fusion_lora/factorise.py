"""Best products of two thin matrices for a matrix, or for a product of longer factors.

By Eckart and Young, the r largest singular components have the smallest Frobenius error of all
products of rank r.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion_lora.matrix import BlockedMatrix

#: A rank this many times smaller than the matrix is found by random projection.
_LOW = 4
#: Random vectors beyond the rank, and multiplications that turn them to the largest components.
#: Halko, Martinsson and Tropp (arXiv:0909.4061), algorithm 4.4, with more of both.
_EXTRA, _ITERATIONS = 16, 4


class Factors(NamedTuple):
    """Factors (m, r) and (r, n), and the squared norm of the matrix that they are to equal."""

    left: Tensor
    right: Tensor
    squared_norm: float
    squared_error: float

    @property
    def rank(self) -> int:
        """The length of the product."""
        return self.left.shape[1]


def factorise(
    matrix: BlockedMatrix, rank: int | None, energy: float | None, dtype: torch.dtype
) -> Factors:
    """Return the best factors of a rank, or of the least rank that keeps a share of the energy.

    The energy is the sum of squared entries. The error is that of the factors in `dtype`.
    """
    squared_norm = matrix.squared_norm()
    side = min(matrix.height, matrix.width)
    if not squared_norm:
        left, right = torch.zeros(matrix.height, 0), torch.zeros(0, matrix.width)
    elif energy is None and rank is not None and (rank + _EXTRA) * _LOW <= side:
        left, right = _project(matrix, rank)
    else:
        bound = side if rank is None else min(rank, side)
        left, right = _decompose(matrix, lambda squares: min(bound, _count(squares, energy)))
    left, right = left.to(dtype).contiguous(), right.to(dtype).contiguous()
    squared_error = matrix.squared_distance(left.float(), right.float())
    return Factors(left, right, squared_norm, squared_error)


def compress(left: Tensor, right: Tensor, rank: int | None, dtype: torch.dtype) -> Factors:
    """Return factors of at most a rank for a product (m, k) @ (k, n), without forming it.

    The factors are kept if the rank allows it. Else their QR decompositions give a matrix (k, k)
    with the singular values of the product.
    """
    length = left.shape[1]
    bound = min(left.shape[0], right.shape[1], length if rank is None else rank)
    short_left, short_right = left, right
    if bound < length:
        basis, triangle = torch.linalg.qr(left.double())
        other_basis, other_triangle = torch.linalg.qr(right.double().mT)
        inner, values, outer = torch.linalg.svd(triangle @ other_triangle.mT)
        roots = values[:bound].sqrt()
        short_left = (basis @ inner[:, :bound]) * roots
        short_right = roots[:, None] * (outer[:bound] @ other_basis.mT)
    short_left, short_right = short_left.to(dtype).contiguous(), short_right.to(dtype).contiguous()
    squared_error = 0.0
    if bound < length or short_left.dtype != left.dtype:
        squared_error = _squared_norm_of_product(
            torch.cat([left.double(), -short_left.double()], dim=1),
            torch.cat([right.double(), short_right.double()]),
        )
    return Factors(short_left, short_right, _squared_norm_of_product(left, right), squared_error)


def _squared_norm_of_product(left: Tensor, right: Tensor) -> float:
    """Return the squared norm of a product from the Gram matrices of its factors."""
    left, right = left.double(), right.double()
    return max(((left.mT @ left) * (right @ right.mT)).sum().item(), 0.0)


def _project(matrix: BlockedMatrix, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest components within the range of the matrix on random vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(matrix.width, rank + _EXTRA, generator=generator)
    basis = _orthonormalise(matrix.times(vectors))
    for _ in range(_ITERATIONS):
        basis = _orthonormalise(matrix.times(_orthonormalise(matrix.transposed_times(basis))))
    rows = matrix.transposed_times(basis)  # (width, k): the transposed projection
    right, values, inner = torch.linalg.svd(rows, full_matrices=False)
    roots = values[:rank].sqrt()
    return basis @ (inner[:rank].mT * roots), roots[:, None] * right[:, :rank].mT


def _decompose(matrix: BlockedMatrix, choose: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """Return as many of the largest components as `choose` says, given all squared values."""
    if matrix.height < matrix.width:
        right, left = _decompose(matrix.mT, choose)
        return left.mT, right.mT
    squares, basis = torch.linalg.eigh(matrix.gram())
    squares, basis = squares.flip(0).clamp_(min=0), basis.flip(1)
    rank = choose(squares)
    roots = squares[:rank].sqrt().sqrt().clamp_(min=torch.finfo(torch.float32).tiny)
    left = matrix.times((basis[:, :rank] / roots).float())
    return left, (basis[:, :rank] * roots).mT.float()


def _count(squares: Tensor, energy: float | None) -> int:
    """Return how many components reach a share of the energy; all if there is none."""
    if energy is None:
        return len(squares)
    sums = squares.cumsum(0)
    return min(int((sums < energy * sums[-1]).sum()) + 1, len(squares))


def _orthonormalise(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
