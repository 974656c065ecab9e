"""Task singular vectors (TSV, arXiv:2412.00081): truncated and made orthogonal across experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, Piece, Transform
from fusion_spectral.config import OrthogonaliseConfig

if TYPE_CHECKING:
    from torch import Tensor


class Orthogonalise(Transform[OrthogonaliseConfig]):
    """Low-rank task vectors whose singular vectors do not interfere: the parts of TSV-M.

    A matrix's task vector is cut to its r largest singular components U_k S_k V_k'; r is
    floor(rank / experts), and at least one. The bases of all experts, side by side, are replaced by
    the nearest ones with orthonormal columns (the polar factor, by SVD), and each expert gets back
    its own columns. What is not a matrix is divided by the number of experts, so that the sum of
    what comes out is the task vector of TSV-M. Cost: a full SVD a matrix and expert, and two
    of the joined bases.
    """

    config_class = OrthogonaliseConfig

    @property
    def cut(self) -> Cut:
        """Matrices are whole."""
        return Cut.TENSOR

    def rows(self, piece: Piece) -> Tensor:
        """Return rows of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        count, rank = len(rows), min(rows.shape[1:], default=0)
        if rows.dim() != 3 or not rank:  # noqa: PLR2004 - experts and a matrix
            return rows / count
        kept = self._kept(rank, count)
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
        left = _orthonormal(left[:, :, :kept])
        right = _orthonormal(right[:, :kept].mT)
        orthogonal: Tensor = (left * values[:, None, :kept]) @ right.mT
        return orthogonal

    def _kept(self, rank: int, experts: int) -> int:
        """Return how many components of each expert are kept, so that all fit beside each other."""
        fraction = self.config.rank_fraction
        wanted = rank // experts if fraction is None else int(fraction * rank)
        return max(1, wanted)


def _orthonormal(bases: Tensor) -> Tensor:
    """Return the nearest bases of which all columns together are orthonormal.

    `bases` has the shape (experts, n, r). Where experts * r exceeds n, the columns cannot be: then
    the rows of all of them together are.
    """
    joined = torch.cat(list(bases), dim=1)
    left, _, right = torch.linalg.svd(joined, full_matrices=False)
    return torch.stack((left @ right).split(bases.shape[2], dim=1))
