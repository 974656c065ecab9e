"""Isotropic merging (arXiv:2502.04959): sums whose singular values are all equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Transform
from fusion_core.weights import Components, decompose, joint_rank, polar, sum_in_order
from fusion_spectral.config import IsoCtsConfig, IsotropiseConfig, ScaleConfig
from fusion_spectral.matrixwise import ROUNDING, Matrixwise, MatrixwiseMerge
from fusion_spectral.orthogonalise import orthogonalise_bases

if TYPE_CHECKING:
    from torch import Tensor


class IsoC(MatrixwiseMerge[ScaleConfig]):
    """Sum task vectors, and give every direction of the sum the same weight (arXiv:2502.04959).

    Formula: base + scale * mean(s) U V', where U diag(s) V' is the sum of a matrix's task vectors.
    All other tensors are averaged, and scaled too.
    Options: `scale` (factor; 1.0), `matrices` (`all`).
    Differences: the mean is over nonzero singular values, and directions in which no expert moved
    stay zero. For experts of full rank this is the paper. For adapters the paper and the authors'
    code average over all min(m, n) values and fill zero directions with arbitrary vectors of an
    SVD. Without those vectors, a mean over 576 values of which 64 are nonzero would return almost
    the base.
    Data: none. Cost: one eigendecomposition per matrix, whatever the number of experts: U V' is the
    polar factor Q of the sum S, and mean(s) = <Q, S> / |Q|^2.
    """

    config_class = ScaleConfig
    pieces_held, squares = (6.2, 2), (6, 0)

    def combine(self, rows: Tensor) -> Tensor:
        """Flatten the sum's spectrum."""
        total = sum_in_order(rows)
        factor = polar(total)
        rank = factor.square().sum().round().clamp_min(1)
        return factor * ((factor * total).sum() / rank)


class IsoCts(MatrixwiseMerge[IsoCtsConfig]):
    """Give common directions and each expert's own directions the same weight (arXiv:2502.04959).

    Formula: base + scale * mean(s) U V', over the sum's largest components and s components of each
    expert's (I - C C') tau_k. C are the sum's left vectors, s = (1 - common_fraction) * rank /
    experts, rounded, and the sum keeps rank - s * experts components. The joined bases are made
    orthonormal as in `orthogonalise`. All other tensors are averaged, and scaled too.
    Options: `scale` (factor; 1.0), `common_fraction` (fraction of the rank; 0.8), `matrices`
    (`all`).
    Differences: the authors' code takes SVDs, this method uses Gram matrices. The rank is that of
    all task vectors joined: min(m, n) for experts of full rank, as in the paper, and about the sum
    of the ranks of adapters, for which the paper and the code still take min(m, n) (see `iso-c`).
    Directions that are zero up to rounding neither count nor take part.
    Data: none. Cost: one eigendecomposition per matrix and expert, one of the sum, one for the
    rank, and two of the joined bases.
    """

    config_class = IsoCtsConfig
    pieces_held, squares = (9, 3), (8, 1)

    def combine(self, rows: Tensor) -> Tensor:
        """Join common and own directions under a flat spectrum."""
        joined = _flat_directions(rows, self.config.common_fraction)
        left, values, right = (
            torch.cat(of_parts, dim=-1) for of_parts in zip(*joined, strict=True)
        )
        return Components(left, values, right).product()


class Isotropise(Matrixwise, Transform[IsotropiseConfig]):
    """Give common directions and each expert's own directions the same strength (2502.04959).

    Formula: mean(s) (U_k V_k' + U_0 V_0' / experts), with each expert's own directions U_k, V_k and
    the common ones U_0, V_0, all as in `iso-cts`. All other tensors are divided by the number of
    experts, so that the sum of the results is the task vector of Iso-CTS.
    Options: `common_fraction` (fraction of the rank; 0.8), `matrices` (`all`).
    Differences: the paper has no vectors per expert. Dividing the common part evenly among them is
    our choice.
    Data: none. Cost: that of `iso-cts`, and a product per expert.
    """

    config_class = IsotropiseConfig
    other_tensors = "divided by the number of experts"
    pieces_held, squares = (9, 4), (8, 1)

    def rows(self, piece: Piece) -> Tensor:
        """Return isotropic task vectors of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        if not self.decomposes(rows):
            return rows / len(rows)
        *by_expert, common = _flat_directions(rows, self.config.common_fraction)
        shared = common.product() / len(rows)
        return torch.stack([part.product() + shared for part in by_expert])


def _flat_directions(rows: Tensor, common_fraction: float) -> list[Components]:
    """Return each expert's own directions and, last, the common ones, all of the mean strength."""
    rank, experts = joint_rank(rows), len(rows)
    rest = rank - int(rank * common_fraction)
    per_expert = min(round(rest / experts), rank // experts)
    bounds = torch.linalg.matrix_norm(rows) * ROUNDING
    total = decompose(sum_in_order(rows))
    common = _drop_rounding(total.largest(rank - per_expert * experts), bounds.max())
    outside = (decompose(row - common.left @ (common.left.mT @ row)) for row in rows)
    parts = [
        _drop_rounding(part.largest(per_expert), bound)
        for part, bound in zip(outside, bounds, strict=True)
    ]
    parts.append(common)
    values = torch.cat([part.values for part in parts])
    if not len(values):
        return parts
    return [
        Components(part.left, values.mean().expand(part.rank), part.right)
        for part in orthogonalise_bases(parts)
    ]


def _drop_rounding(parts: Components, bound: Tensor) -> Components:
    """Return the components whose singular values are above a bound."""
    return parts.largest(int((parts.values > bound).sum()))
