"""Factors of matrices whose rank is low, found by products with random vectors.

The work takes one pass over the matrix for every doubling of the rank, and memory for the factors
and a few rows in fp64. A singular decomposition would take far more of both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fusion_adapting._predictions import make_generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

#: Factors stand for a matrix if they miss at most this fraction of its Frobenius norm, by dtype:
#: about as much as rounding does in products.
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}
#: The first number of directions to try.
_FIRST = 16
#: How many rows are held in fp64 at once.
_ROWS = 4096


def factorise(matrix: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
    """Return factors (rows, r) and (r, columns) whose product is the matrix, to rounding.

    r is at most `limit`, and 0 for a matrix of zeros. Returns None for a matrix of higher rank, or
    with values that are not finite. The first factor is an orthonormal basis. Source: the
    randomised range finder of arXiv:0909.4061.
    """
    scale = matrix.abs().amax()
    if not scale.isfinite():
        return None
    wide = _Wide(matrix, scale)
    basis = torch.empty(len(matrix), 0, dtype=torch.float64, device=matrix.device)
    coordinates = wide.project(basis)
    norm = missing = wide.distance(basis, coordinates)
    tolerance = _ROUNDING[matrix.dtype] * norm
    generator = make_generator(0, "factors")
    while missing > tolerance:
        size = basis.shape[1]
        if size == limit:
            return None
        more = min(max(_FIRST, size), limit - size)  # twice as many as before
        probes = torch.randn(matrix.shape[1], more, generator=generator, dtype=torch.float64)
        probes = probes.to(matrix.device)
        new = wide.multiply(probes) - basis @ (coordinates @ probes)
        basis = torch.linalg.qr(torch.cat([basis, new], dim=1)).Q
        coordinates = wide.project(basis)
        missing = wide.distance(basis, coordinates)
    turn, values, right = torch.linalg.svd(coordinates, full_matrices=False)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()  # of each direction and all after it
    count = int((tails > tolerance).sum())
    left, right = basis @ turn[:, :count], values[:count, None] * right[:count]
    return left.to(matrix), right.to(matrix) * scale


class _Wide:
    """A matrix divided by a number, in fp64, of which a block of rows exists at a time.

    The number is the largest entry, so that squares neither overflow nor vanish.
    """

    def __init__(self, matrix: Tensor, scale: Tensor) -> None:
        self._matrix = matrix
        self._scale = scale.clamp_min(torch.finfo(matrix.dtype).tiny)

    def multiply(self, right: Tensor) -> Tensor:
        """Return matrix @ right."""
        return torch.cat([block @ right for block in self._blocks()])

    def project(self, left: Tensor) -> Tensor:
        """Return left.T @ matrix."""
        product = left.new_zeros(left.shape[1], self._matrix.shape[1])
        for part, block in zip(torch.split(left, _ROWS), self._blocks(), strict=True):
            product.addmm_(part.T, block)
        return product

    def distance(self, left: Tensor, right: Tensor) -> float:
        """Return the Frobenius norm of matrix - left @ right."""
        parts = zip(torch.split(left, _ROWS), self._blocks(), strict=True)
        return math.sqrt(sum(float((block - part @ right).square().sum()) for part, block in parts))

    def _blocks(self) -> Iterator[Tensor]:
        return ((rows / self._scale).double() for rows in torch.split(self._matrix, _ROWS))
