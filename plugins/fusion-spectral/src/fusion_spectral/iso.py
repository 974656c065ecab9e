"""Isotropic merging (arXiv:2502.04959): sums whose singular values are all alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Components, decompose, in_order, polar
from fusion_spectral.config import IsoCtsConfig, ScaleConfig
from fusion_spectral.matrixwise import MatrixwiseMerge
from fusion_spectral.orthogonalise import orthogonalised

if TYPE_CHECKING:
    from torch import Tensor


class IsoC(MatrixwiseMerge[ScaleConfig]):
    """base + scale * mean(s) U V', for the sum U diag(s) V' of a matrix's task vectors.

    U V' is the polar factor Q of the sum S, and mean(s) = <Q, S> / rank, so no SVD is taken: the
    eigenvectors of the smaller Gram matrix give Q. `rank` is min(m, n). Directions in which no
    expert moved stay zero; the authors' SVD puts arbitrary ones there, with the mean as their
    singular value, which matters for adapters. Everything else is averaged, and scaled, too. Data:
    none. Cost: one eigendecomposition a matrix, whatever the number of experts.
    """

    config_class = ScaleConfig
    pieces_held, squares = (6.9, 2), (6, 0)

    @property
    def scale(self) -> float:
        """Lambda."""
        return self.config.scale

    def combine(self, rows: Tensor) -> Tensor:
        """Flatten the sum's spectrum."""
        total = in_order(rows)
        factor = polar(total)
        return factor * ((factor * total).sum() / min(total.shape))


class IsoCts(MatrixwiseMerge[IsoCtsConfig]):
    """base + scale * mean(s) U V', of common directions and of each expert's own.

    The sum's largest components are common. What an expert has outside their left vectors, (I - C
    C') tau_k, gives its own: s of them each, where s is the rest of the rank, 1 - `common_fraction`
    of it, divided by the experts and rounded; so the common ones are rank - s * experts. The bases
    side by side are made orthonormal as in `orthogonalise`, and every direction gets the mean of
    all singular values. As the authors' code, but by Gram matrices and not by SVD. Everything else
    is averaged, and scaled, too. Data: none. Cost: an eigendecomposition a matrix and expert, one
    of the sum, and two of the joined bases.
    """

    config_class = IsoCtsConfig
    pieces_held, squares = (9, 3), (8, 1)

    @property
    def scale(self) -> float:
        """Lambda."""
        return self.config.scale

    def combine(self, rows: Tensor) -> Tensor:
        """Join common and own directions under a flat spectrum."""
        total = in_order(rows)
        own = self._own(min(total.shape), len(rows))
        common = decompose(total).largest(min(total.shape) - own * len(rows))
        outside = (row - common.left @ (common.left.mT @ row) for row in rows)
        parts = [*(decompose(row).largest(own) for row in outside), common]
        level = torch.cat([part.values for part in parts]).mean()
        joined = orthogonalised(parts)
        left = torch.cat([part.left for part in joined], dim=1)
        right = torch.cat([part.right for part in joined], dim=1)
        return Components(left, level, right).product()

    def _own(self, rank: int, experts: int) -> int:
        """Return how many directions are each expert's own."""
        rest = rank - int(rank * self.config.common_fraction)
        return min(round(rest / experts), rank // experts)
