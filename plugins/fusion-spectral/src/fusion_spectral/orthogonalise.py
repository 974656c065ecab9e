"""Task singular vectors (TSV, arXiv:2412.00081): truncated and made orthogonal across experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Transform
from fusion_core.weights import Components, decompose, is_matrix, polar
from fusion_spectral.config import OrthogonaliseConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Orthogonalise(Matrixwise, Transform[OrthogonaliseConfig]):
    """Low-rank task vectors whose singular vectors do not interfere: the parts of TSV-M.

    A matrix's task vector is cut to its r largest singular components U_k S_k V_k'; r is
    floor(min(m, n) / experts), and at least one, so that all fit beside each other. Adapters fit
    whole as long as their ranks add up to less. The bases of all experts, side by side, are
    replaced by their polar factor, the nearest basis with orthonormal columns, and each expert gets
    back its own columns. Everything that is not a matrix is divided by the number of experts, so
    that the sum of what comes out is the task vector of TSV-M. The authors' code takes SVDs; this
    takes the eigenvectors of Gram matrices, in fp64, and leaves out directions in which an expert
    has nothing, where an SVD puts arbitrary ones. Data: none. Cost: an eigendecomposition per
    matrix and expert, on its smaller side, and two of the joined bases.
    """

    config_class = OrthogonaliseConfig
    otherwise = "divided by the number of experts"
    pieces_held, squares = (3, 4.8), (9, 0)

    def rows(self, piece: Piece) -> Tensor:
        """Return rows of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        if not is_matrix(piece.shape):
            return rows / len(rows)
        kept = self._kept(min(piece.shape), len(rows))
        parts = [decompose(row).largest(kept) for row in rows]
        return torch.stack([part.product() for part in orthogonalised(parts)])

    def _kept(self, rank: int, experts: int) -> int:
        """Return how many components of each expert are kept, so that all fit beside each other."""
        fraction = self.config.rank_fraction
        wanted = rank // experts if fraction is None else int(fraction * rank)
        return max(1, wanted)


def orthogonalised(parts: Sequence[Components]) -> list[Components]:
    """Return components whose left vectors, and right vectors, are orthonormal across all parts.

    Where there are more vectors than dimensions, they cannot be: then the rows of all of them side
    by side are.
    """
    sizes = [len(part.values) for part in parts]
    left = torch.split(polar(torch.cat([part.left for part in parts], dim=1)), sizes, dim=1)
    right = torch.split(polar(torch.cat([part.right for part in parts], dim=1)), sizes, dim=1)
    return [
        Components(one, part.values, other)
        for one, part, other in zip(left, parts, right, strict=True)
    ]
