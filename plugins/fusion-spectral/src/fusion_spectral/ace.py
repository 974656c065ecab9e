"""ACE-Merging (arXiv:2603.02945): least squares with covariances estimated from task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import decompose, sum_in_order
from fusion_spectral.config import AceConfig
from fusion_spectral.matrixwise import MatrixwiseMerge, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Bounds of a covariance's ridge, as fractions of its trace. Below the lower bound, least squares
#: over covariances of low rank may move a thousand times further than any expert. Above the upper
#: bound, an expert that hardly moved would outweigh all others.
_MIN_RIDGE, _MAX_RIDGE = 1e-6, 1.0


class Ace(MatrixwiseMerge[AceConfig]):
    """Solve least squares with input covariances estimated from task vectors (arXiv:2603.02945).

    Formula: base + B A^-1 for a matrix (out, in). With D_k the task vector minus the mean of its
    rows and S_k = D_k' D_k, B = sum of D_k (S_k + e I) and A = sum of (S_k + e I) + c. The common
    part c has the mean of the rows of the sum of all S_k in every row. If the norms are
    heterogeneous (the variance of log |tau_k|^2 over its squared mean is above `threshold`), S_k
    and e are divided by the trace of S_k and c by the mean |tau_k|^2, and a refinement with a flat
    spectrum is added: the largest components of B A^-1 + sum of tau_k (S_k - A' / K), with the mean
    of their singular values, where A' is A without c. All other tensors, and matrices of one row,
    are averaged.
    Options: `epsilon` (e, in squared units of the weights; 0.01), `threshold` (0.3),
    `rank_fraction` (fraction of the refinement's components; 0.3). `epsilon` and `threshold` depend
    on the scale of the task vectors.
    Source: arXiv:2603.02945, as in the authors' code (B with D_k instead of tau_k, and e = 0.01,
    are the code's). Differences: an expert whose S_k is zero says nothing about the inputs and does
    not count. The ridge is at least a millionth of the trace of S_k and, after division by the
    trace, at most 1. The refinement counts only components that are not zero, because adapters
    have few of them.
    Data: none. Cost: K products and one solve of size (in, in) per matrix, in fp64.
    """

    config_class = AceConfig
    pieces_held, squares = (12.9, 2.3), (11, 0)

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the number of inputs: covariances are (in, in)."""
        return shape[1]

    def combine(self, rows: Tensor) -> Tensor:
        """Solve, and refine if the experts are heterogeneous."""
        if rows.shape[1] == 1:
            return mean(rows)
        rows = rows[[bool(_centre(row).any()) for row in rows]]
        if not len(rows):
            return rows.new_zeros(rows.shape[1:])
        squares = torch.linalg.vector_norm(rows, dim=(1, 2), dtype=torch.float64).square()
        normalise = _are_heterogeneous(squares, self.config.threshold)
        sums = _Sums.from_rows(rows, self.config.epsilon, normalise=normalise)
        common = sums.covariance.mean(dim=0, keepdim=True)
        common = common / squares.mean() if normalise else common
        merged = _solve(sums, common)
        if normalise:
            rest = sums.products - sum_in_order(rows).double() @ sums.ridged / len(rows)
            merged = merged + _flatten(merged + rest, self.config.rank_fraction)
        return merged.to(rows.dtype)


@dataclass(frozen=True)
class _Sums:
    """Sums over the experts in fp64. Only one expert's covariance is in memory at a time."""

    #: S_k
    covariance: Tensor
    #: S_k + e I
    ridged: Tensor
    #: D_k (S_k + e I)
    target: Tensor
    #: tau_k S_k
    products: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor, epsilon: float, *, normalise: bool) -> _Sums:
        """Sum over task vectors (m, n), none of which has all rows equal."""
        square = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64, device=rows.device)
        sums = cls(square, square.clone(), *(torch.zeros_like(rows[0]).double() for _ in range(2)))
        for row in rows:
            centred = _centre(row)
            trace = float(centred.square().sum())
            scale, max_ridge = (trace, _MAX_RIDGE) if normalise else (1.0, math.inf)
            covariance = centred.mT @ centred / scale
            sums.covariance.add_(covariance)
            sums.products.add_(row.double() @ covariance)
            ridge = max(epsilon, _MIN_RIDGE * trace) / scale
            covariance.diagonal().add_(min(ridge, max_ridge))
            sums.ridged.add_(covariance)
            sums.target.add_(centred @ covariance)
        return sums


def _solve(sums: _Sums, common: Tensor) -> Tensor:
    """Return B A^-1 for A = A' + c, solving with A' only: c has rank one and may be much larger."""
    both = torch.cat([sums.target, common])
    solved: Tensor = torch.linalg.solve(sums.ridged, both, left=False)
    merged, prior = solved[:-1], solved[-1:]
    return merged - merged.sum(dim=1, keepdim=True) * (prior / (1 + prior.sum()))


def _centre(row: Tensor) -> Tensor:
    """Return a task vector minus the mean of its rows, in fp64."""
    wide = row.double()
    return wide - wide.mean(dim=0, keepdim=True)


def _flatten(matrix: Tensor, rank_fraction: float) -> Tensor:
    """Return the largest components, all with the mean of their singular values."""
    parts = decompose(matrix)
    largest = parts.largest(int(rank_fraction * parts.rank))
    level = largest.values.sum() / max(len(largest.values), 1)
    return largest._replace(values=level).product()


def _are_heterogeneous(squares: Tensor, threshold: float) -> bool:
    """Compare the variance of log |tau_k|^2 with `threshold` times its squared mean."""
    if len(squares) == 1:
        return False
    logs = squares.log()
    return bool(logs.var() > threshold * logs.mean().square())
