"""Task singular vectors (TSV, arXiv:2412.00081): truncated and made orthogonal across experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Transform, expert_values
from fusion_core.weights import Components, decompose, polar
from fusion_spectral.config import OrthogonaliseConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Orthogonalise(Matrixwise, Transform[OrthogonaliseConfig]):
    """Keep each task vector's largest components, made orthogonal across experts (2412.00081).

    Formula: P_k S_k Q_k' of the r largest components U_k S_k V_k' of tau_k. [P_1 ... P_K] is the
    polar factor of [U_1 ... U_K], the nearest basis with orthonormal columns, and Q likewise. All
    other tensors are divided by the number of experts, so that the sum of the results is the task
    vector of TSV-M.
    Options: `rank_fraction` (r as a fraction of min(m, n), at least one component; 1 / experts, so
    that all bases fit next to each other), `matrices` (`all`). Adapters fit whole while their ranks
    add up to less.
    Differences: the authors' code takes SVDs. This method takes eigenvectors of Gram matrices in
    fp64, and leaves out directions in which an expert did not move, where an SVD gives arbitrary
    vectors.
    Data: none. Cost: one eigendecomposition per matrix and expert, of the smaller side, or of the
    rank of an adapter, and two of the joined bases.
    """

    config_class = OrthogonaliseConfig
    other_tensors = "divided by the number of experts"
    pieces_held, squares = (3, 4.8), (9, 0)

    def rows(self, piece: Piece) -> Tensor:
        """Return orthogonal task vectors of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        if not self.decomposes(rows):
            return rows / len(rows)
        pairs = zip(rows, self._counts(piece), strict=True)
        parts = [decompose(row).largest(max(1, count)) for row, count in pairs]
        return torch.stack([part.product() for part in orthogonalise_bases(parts)])

    def _counts(self, piece: Piece) -> list[int]:
        """Return how many components to keep of each expert."""
        rank, fraction, experts = min(piece.shape), self.config.rank_fraction, piece.names
        if fraction is None:
            return [rank // len(experts)] * len(experts)
        fractions = expert_values(fraction, experts, "rank_fraction")
        return [int(share * rank) for share in fractions]


def orthogonalise_bases(parts: Sequence[Components]) -> list[Components]:
    """Make left vectors, and right vectors, orthonormal across all parts.

    If there are more vectors than dimensions, the rows of the joined vectors become orthonormal
    instead.
    """
    sizes = [len(part.values) for part in parts]
    lefts = torch.split(polar(torch.cat([part.left for part in parts], dim=1)), sizes, dim=1)
    rights = torch.split(polar(torch.cat([part.right for part in parts], dim=1)), sizes, dim=1)
    return [
        Components(left, part.values, right)
        for left, part, right in zip(lefts, parts, rights, strict=True)
    ]
