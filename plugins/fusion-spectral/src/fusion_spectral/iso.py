"""Isotropic merging (arXiv:2502.04959): sums whose singular values are all alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Components, decompose, in_order, joint_rank, polar
from fusion_spectral.config import IsoCtsConfig, ScaleConfig
from fusion_spectral.matrixwise import MatrixwiseMerge
from fusion_spectral.orthogonalise import orthogonalised

if TYPE_CHECKING:
    from torch import Tensor


#: Of an expert's task vector, by its norm: what is left of it by rounding where others are removed.
_ROUNDING = 1e-6


class IsoC(MatrixwiseMerge[ScaleConfig]):
    """base + scale * mean(s) U V', for the sum U diag(s) V' of a matrix's task vectors.

    U V' is the polar factor Q of the sum S, and mean(s) = <Q, S> / rank, so no SVD is taken: the
    eigenvectors of the smaller Gram matrix give Q. `rank` is the numerical rank of S, |Q|^2: the
    mean is that of the singular values that are not zero, and directions in which no expert moved
    stay zero. For experts of full rank this is the paper. For adapters it is not: the paper and the
    authors' code take the mean over all min(m, n) values, and an SVD puts arbitrary directions in
    the place of those that are zero. The mean over 576 values of which 64 are not zero, without
    these arbitrary directions, would return almost the base. Everything else is averaged, and
    scaled, too. Data: none. Cost: one eigendecomposition per matrix, whatever the number of
    experts.
    """

    config_class = ScaleConfig
    pieces_held, squares = (6.2, 2), (6, 0)

    @property
    def scale(self) -> float:
        """Lambda."""
        return self.config.scale

    def combine(self, rows: Tensor) -> Tensor:
        """Flatten the sum's spectrum."""
        total = in_order(rows)
        factor = polar(total)
        rank = factor.square().sum().round().clamp_min(1)
        return factor * ((factor * total).sum() / rank)


class IsoCts(MatrixwiseMerge[IsoCtsConfig]):
    """base + scale * mean(s) U V', of common directions and of each expert's own.

    The sum's largest components are common. What an expert has outside their left vectors, (I - C
    C') tau_k, gives its own: s of them each, where s is the rest of the rank, 1 - `common_fraction`
    of it, divided by the experts and rounded; so the common ones are rank - s * experts. The bases
    side by side are made orthonormal as in `orthogonalise`, and every direction gets the mean of
    all singular values. As the authors' code, but by Gram matrices and not by SVD.

    The rank is that of all task vectors side by side: min(m, n) for experts of full rank, as in
    the paper, and about the sum of the ranks of adapters. There the paper and the authors' code
    take min(m, n) all the same, and the mean over as many values, most of them zero (as in
    `iso-c`). Here directions that are zero but for rounding neither count nor take part.
    Everything else is averaged, and scaled, too. Data: none. Cost: an eigendecomposition per matrix
    and expert, one of the sum, one for the rank, and two of the joined bases.
    """

    config_class = IsoCtsConfig
    pieces_held, squares = (9, 3), (8, 1)

    @property
    def scale(self) -> float:
        """Lambda."""
        return self.config.scale

    def combine(self, rows: Tensor) -> Tensor:
        """Join common and own directions under a flat spectrum."""
        rank = joint_rank(rows)
        own = self._own(rank, len(rows))
        bounds = torch.linalg.matrix_norm(rows) * _ROUNDING
        total = decompose(in_order(rows))
        common = _above(total.largest(rank - own * len(rows)), bounds.max())
        outside = (decompose(row - common.left @ (common.left.mT @ row)) for row in rows)
        kept = zip(outside, bounds, strict=True)
        parts = [*(_above(part.largest(own), bound) for part, bound in kept), common]
        values = torch.cat([part.values for part in parts])
        if not len(values):
            return torch.zeros_like(rows[0])
        joined = orthogonalised(parts)
        left = torch.cat([part.left for part in joined], dim=1)
        right = torch.cat([part.right for part in joined], dim=1)
        return Components(left, values.mean(), right).product()

    def _own(self, rank: int, experts: int) -> int:
        """Return how many directions are each expert's own."""
        rest = rank - int(rank * self.config.common_fraction)
        return min(round(rest / experts), rank // experts)


def _above(parts: Components, bound: Tensor) -> Components:
    """Return the components whose singular values are above a bound."""
    return parts.largest(int((parts.values > bound).sum()))
