"""ACE-Merging (arXiv:2603.02945): least squares with covariances guessed from task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import decompose, in_order
from fusion_spectral.config import AceConfig
from fusion_spectral.matrixwise import MatrixwiseMerge, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Bounds of the ridge of a covariance, as a fraction of its trace. Below the lower one, least
#: squares over covariances of low rank may go a thousand times further than any expert. Above the
#: upper one, an expert that hardly moved would outweigh all others.
_LEAST_RIDGE, _MOST_RIDGE = 1e-6, 1.0


class Ace(MatrixwiseMerge[AceConfig]):
    """base + B A^-1: each expert's task vector weighted by the covariance of its own rows.

    For a matrix (out, in), with D_k the task vector less the mean of its rows and S_k = D_k' D_k:
    B = sum of D_k (S_k + e I), A = sum of (S_k + e I) + c. Here c, the same in every row, is the
    mean of the rows of the sum of all S_k: what experts have in common. Where the norms are
    heterogeneous (the variance of log |tau_k|^2 over its squared mean is above `threshold`), S_k
    and e are divided by S_k's trace, c by the mean |tau_k|^2, and a flat-spectrum refinement is
    added: the largest components of B A^-1 + sum of tau_k (S_k - A' / K), with the mean of their
    singular values, A' being A without c. This follows the authors' code (that B holds D_k and not
    tau_k, and e = 0.01, are the code's).

    Three cases are not in the paper. An expert whose S_k is zero says nothing of the inputs: its
    covariance is zero, it adds no e I, and K and the heterogeneity count the other experts alone.
    The ridge is at least a millionth of the trace of S_k and, where it is divided by that, at most
    1. The refinement takes its fraction of the components that are not zero, and averages over
    these: adapters have few.

    A matrix of one row has no covariance of rows, and is averaged like everything else that is not
    a matrix. `epsilon` and the heterogeneity depend on the scale of the task vectors. Data: none.
    Cost: K products and one solution of size (in, in) per matrix, in fp64.
    """

    config_class = AceConfig
    pieces_held, squares = (12.9, 2.3), (11, 0)

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the width of the squares: that of the inputs."""
        return shape[1]

    def combine(self, rows: Tensor) -> Tensor:
        """Solve, and refine where the experts are heterogeneous."""
        if rows.shape[1] == 1:
            return mean(rows)
        rows = rows[[bool(_centred(row).any()) for row in rows]]
        if not len(rows):
            return rows.new_zeros(rows.shape[1:])
        squares = torch.linalg.vector_norm(rows, dim=(1, 2), dtype=torch.float64).square()
        uneven = _are_heterogeneous(squares, self.config.threshold)
        sums = _Sums.of(rows, self.config.epsilon, normalised=uneven)
        common = sums.covariance.mean(dim=0, keepdim=True)
        common = common / squares.mean() if uneven else common
        merged = _solved(sums, common)
        if uneven:
            rest = sums.products - in_order(rows).double() @ sums.ridged / len(rows)
            merged = merged + _flattened(merged + rest, self.config.rank_fraction)
        return merged.to(rows.dtype)


@dataclass(frozen=True)
class _Sums:
    """Sums over the experts, in fp64: one expert's covariance is in memory at a time."""

    #: S_k
    covariance: Tensor
    #: S_k + e I
    ridged: Tensor
    #: D_k (S_k + e I)
    target: Tensor
    #: tau_k S_k
    products: Tensor

    @classmethod
    def of(cls, rows: Tensor, epsilon: float, *, normalised: bool) -> _Sums:
        """Add up what each task vector (m, n) contributes; none of them has equal rows."""
        square = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64, device=rows.device)
        sums = cls(square, square.clone(), *(torch.zeros_like(rows[0]).double() for _ in range(2)))
        for row in rows:
            sums._add(row.double(), epsilon, normalised=normalised)
        return sums

    def _add(self, row: Tensor, epsilon: float, *, normalised: bool) -> None:
        centred = _centred(row)
        trace = float(centred.square().sum())
        scale, most = (trace, _MOST_RIDGE) if normalised else (1.0, math.inf)
        covariance = centred.mT @ centred / scale
        self.covariance.add_(covariance)
        self.products.add_(row @ covariance)
        ridge = max(epsilon, _LEAST_RIDGE * trace) / scale
        covariance.diagonal().add_(min(ridge, most))
        self.ridged.add_(covariance)
        self.target.add_(centred @ covariance)


def _solved(sums: _Sums, common: Tensor) -> Tensor:
    """Return B A^-1 for A = A' + c, by A' alone: c has rank one, and may be much larger."""
    both = torch.cat([sums.target, common])
    solved: Tensor = torch.linalg.solve(sums.ridged, both, left=False)
    merged, prior = solved[:-1], solved[-1:]
    return merged - merged.sum(dim=1, keepdim=True) * (prior / (1 + prior.sum()))


def _centred(row: Tensor) -> Tensor:
    """Return a task vector less the mean of its rows, in fp64."""
    wide = row.double()
    return wide - wide.mean(dim=0, keepdim=True)


def _flattened(matrix: Tensor, rank_fraction: float) -> Tensor:
    """Return the largest components, all with the mean of their singular values."""
    parts = decompose(matrix)
    kept = parts.largest(int(rank_fraction * parts.rank))
    level = kept.values.sum() / max(len(kept.values), 1)
    return kept._replace(values=level).product()


def _are_heterogeneous(squares: Tensor, threshold: float) -> bool:
    """Compare the variance of log |tau_k|^2 with `threshold` times its squared mean."""
    if len(squares) == 1:
        return False
    logs = squares.log()
    return bool(logs.var() > threshold * logs.mean().square())
