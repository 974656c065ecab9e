"""Singular components and polar factors, by the smaller Gram matrix.

The eigenvectors of the smaller of X'X and XX', taken in fp64, are the singular vectors of one side.
A product gives those of the other side. On a CPU this takes about as long as LAPACK's SVD.
Newton-Schulz, the usual way to a polar factor without either, takes more than three times as long
(benchmarks/spectral.py), and cannot tell a direction that is zero from one that is rounding.

Task vectors of adapters have few components. These lie in the image of as many random vectors
(arXiv:0909.4061), whose Gram matrix is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from fusion_core.weights.merging.result_cache import shared_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

#: Singular values below this fraction of the largest one are rounding in fp32: they count as zero.
_ROUNDING = 1e-6
#: The same in fp64. Few components stand for a matrix if they miss no more of its Frobenius norm.
_ROUNDING_IN_FP64 = 1e-13
#: `decompose` looks for one in so many components, in matrices that are at least so wide.
_FEW, _WIDE = 8, 128
#: Random vectors, and sampled rows and columns, beyond the number of components.
_SPARE = 8
#: How many rows are held in fp64 at once.
_ROWS = 4096
#: The same while directions are sought, which takes several passes: such a block stays in a cache.
_CACHED_ROWS = 256
_MATRIX = 2


class Components(NamedTuple):
    """Singular components, the largest first: their sum is left @ diag(values) @ right.T.

    Shapes: (m, r), (r,), (n, r).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number of components."""
        return len(self.values)

    def largest(self, count: int) -> Components:
        """Return the first `count` components, or all if there are fewer."""
        return Components(self.left[:, :count], self.values[:count], self.right[:, :count])

    def transposed(self) -> Components:
        """Return the components of the transposed matrix."""
        return Components(self.right, self.values, self.left)

    def product(self) -> Tensor:
        """Return the matrix that these components add up to, of shape (m, n)."""
        product: Tensor = (self.left * self.values) @ self.right.mT
        return product


def is_matrix(shape: Sequence[int]) -> bool:
    """Tell whether a tensor of this shape has singular values."""
    return len(shape) == _MATRIX and all(shape)


def decompose(matrix: Tensor) -> Components:
    """Return all components of a matrix (m, n) whose values are not zero, in its dtype."""
    return Components(*shared_tensors(matrix, "components", _decompose))


def find_few_components(matrix: Tensor, most: int) -> Components | None:
    """Return all components if there are at most `most`, else None, which takes little time."""
    rows, columns = matrix.shape
    if rows < columns:
        parts = find_few_components(matrix.mT, most)
        return None if parts is None else parts.transposed()
    short, space = _shorten(matrix, most)
    if space is None:
        return None
    parts = _components(short, space, matrix.dtype)
    return parts if parts.rank <= most else None


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
    (values,) = shared_tensors(tall, "values", lambda tall: (_spectrum(_shorten(tall)[0])[0],))
    return len(values)


def _decompose(matrix: Tensor) -> Components:
    rows, columns = matrix.shape
    if rows < columns:
        return _decompose(matrix.mT).transposed()
    return _components(*_shorten(matrix), matrix.dtype)


def _components(short: Tensor, space: Tensor | None, dtype: torch.dtype) -> Components:
    """Return the components of what `_shorten` returns."""
    values, basis = _spectrum(short)
    left = _multiply_wide(short, basis / values).to(dtype)
    right = basis if space is None else space @ basis
    return Components(left, values.to(dtype), right.to(dtype))


def _polar(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    if rows < columns:
        return _polar(matrix.mT).mT
    short, space = _shorten(matrix)
    values, basis = _spectrum(short)
    factor = _multiply_wide(short, (basis / values) @ basis.mT)
    return factor if space is None else (factor @ space.mT).to(matrix.dtype)


def scale_components(matrix: Tensor, factors: Tensor) -> Tensor:
    """Multiply a matrix's c largest singular components by factors, and the rest by the last one.

    Shapes: (m, n) and (c + 1,). The matrix is scaled as a whole and only components are added, so
    that equal factors do nothing but scale it. Factors of components that are zero do nothing.
    """
    rest = factors[-1]
    left, values, right = decompose(matrix).largest(len(factors) - 1)
    differences = factors[: len(values)] - rest
    return torch.addmm(matrix * rest, left * (values * differences), right.mT)


def _spectrum(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values and right singular vectors of (m, n), m >= n, in fp64.

    Those that are zero are left out.
    """
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for wide in _wide_blocks(tall):
        gram.addmm_(wide.mT, wide)
    squares, basis = torch.linalg.eigh(gram)
    squares, basis = squares.flip(0), basis.flip(1)
    rank = int((squares > squares[0] * _ROUNDING**2).sum())
    return squares[:rank].sqrt(), basis[:, :rank]


def _shorten(tall: Tensor, most: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Return factors (m, r) and (n, r) of a matrix of small rank, else the matrix and None.

    The second factor is an orthonormal basis of the space of the rows, with a few more directions
    than the rank. Both are in fp64. The rank is small up to `most`, by default an eighth of the
    width if that is large. Some rows and columns tell most matrices whose rank is not.
    """
    width = tall.shape[1]
    if most is None and width < _WIDE:
        return tall, None
    rank = _sample_rank(tall, width // _FEW if most is None else most)
    if rank is None:
        return tall, None
    generator = torch.Generator().manual_seed(0)
    shape = (len(tall), min(rank + _SPARE, width))
    probes = torch.randn(shape, generator=generator, dtype=torch.float64).to(tall.device)
    image = probes.new_zeros(width, shape[1])
    for part, block in zip(torch.split(probes, _CACHED_ROWS), _cached(tall), strict=True):
        image.addmm_(block.mT, part)
    space = torch.linalg.qr(image).Q
    short = torch.cat([block @ space for block in _cached(tall)])
    pairs = zip(_cached(tall), torch.split(short, _CACHED_ROWS), strict=True)
    rest = sum(torch.addmm(block, part, space.mT, alpha=-1).square().sum() for block, part in pairs)
    whole = torch.linalg.vector_norm(tall, dtype=torch.float64)
    is_all = rest <= (_rounding(tall) * whole).square()
    return (short, space) if is_all else (tall, None)


def _sample_rank(tall: Tensor, most: int) -> int | None:
    """Return the rank of some rows and columns, or None above `most` or if any is not finite."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (
        torch.randperm(size, generator=generator)[: most + _SPARE].to(tall.device)
        for size in tall.shape
    )
    sample = tall[rows][:, columns].double()
    if not sample.isfinite().all():
        return None
    values = torch.linalg.svdvals(sample)
    rank = int((values > _rounding(tall) * values.max()).sum())
    return rank if rank <= most else None


def _rounding(matrix: Tensor) -> float:
    return _ROUNDING_IN_FP64 if matrix.dtype is torch.float64 else _ROUNDING


def _cached(tall: Tensor) -> Iterator[Tensor]:
    return _wide_blocks(tall, _CACHED_ROWS)


def _wide_blocks(tall: Tensor, rows: int = _ROWS) -> Iterator[Tensor]:
    """Yield blocks of rows in fp64."""
    return (block.double() for block in torch.split(tall, rows))


def _multiply_wide(tall: Tensor, square: Tensor) -> Tensor:
    """Multiply in fp64, a few rows at a time; an inverse root holds large numbers that cancel."""
    return torch.cat([(block @ square).to(tall.dtype) for block in _wide_blocks(tall)])
