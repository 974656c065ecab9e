"""ACE-Merging (arXiv:2603.02945): least squares with covariances guessed from task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import decompose, in_order
from fusion_spectral.config import AceConfig
from fusion_spectral.matrixwise import MatrixwiseMerge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_TINY = 1e-12


class Ace(MatrixwiseMerge[AceConfig]):
    """base + B A^-1: each expert's task vector weighted by the covariance of its own rows.

    For a matrix (out, in), with D_k the task vector less the mean of its rows and S_k = D_k' D_k:
    B = sum of D_k (S_k + e I), A = sum of (S_k + e I) + c. Here c, the same in every row, is the
    mean of the rows of the sum of all S_k: what experts have in common. Where the norms are
    heterogeneous (the variance of log |tau_k|^2 over its squared mean is above `threshold`), S_k
    and e are divided by S_k's trace, c by the mean |tau_k|^2, and a flat-spectrum refinement is
    added: the largest components of B A^-1 + sum of tau_k (S_k - A' / K), with the mean of their
    singular values, A' being A without c. This follows the authors' code (that B holds D_k and not
    tau_k, and e = 0.01, are the code's). Everything else is averaged. Nothing is relative to the
    scale of the task vectors. Data: none. Cost: K products and one solution of size (in, in) a
    matrix, in fp64.
    """

    config_class = AceConfig
    pieces_held, squares = (11, 2), (9.3, 0)

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the width of the squares: that of the inputs."""
        return shape[1]

    def combine(self, rows: Tensor) -> Tensor:
        """Solve, and refine where the experts are heterogeneous."""
        traces = rows.square().sum(dim=(1, 2), dtype=torch.float64)
        uneven = _heterogeneity(traces) > self.config.threshold
        sums = _Sums.of(rows, self.config.epsilon, normalised=uneven)
        common = sums.covariance.mean(dim=0, keepdim=True)
        common = common / (traces.mean() + _TINY) if uneven else common
        merged: Tensor = torch.linalg.solve(sums.ridged + common, sums.target, left=False)
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
        """Add up what each task vector (m, n) contributes."""
        square = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64, device=rows.device)
        sums = cls(square, square.clone(), *(torch.zeros_like(rows[0]).double() for _ in range(2)))
        for row in rows:
            sums._add(row.double(), epsilon, normalised=normalised)
        return sums

    def _add(self, row: Tensor, epsilon: float, *, normalised: bool) -> None:
        centred = row - row.mean(dim=0, keepdim=True)
        scale = float(centred.square().sum()) + _TINY if normalised else 1.0
        covariance = centred.mT @ centred / scale
        self.covariance.add_(covariance)
        self.products.add_(row @ covariance)
        covariance.diagonal().add_(epsilon / scale)
        self.ridged.add_(covariance)
        self.target.add_(centred @ covariance)


def _flattened(matrix: Tensor, rank_fraction: float) -> Tensor:
    """Return the largest components, all with the mean of their singular values."""
    parts = decompose(matrix)
    kept = parts.largest(int(rank_fraction * len(parts.values)))
    level = kept.values.sum() / max(len(kept.values), 1)
    return kept._replace(values=level).product()


def _heterogeneity(traces: Tensor) -> float:
    """Return the variance of the logarithms of |tau_k|^2, over their squared mean."""
    if len(traces) == 1:
        return 0.0
    logs = (traces + _TINY).log()
    return float(logs.var() / (logs.mean().square() + _TINY))
