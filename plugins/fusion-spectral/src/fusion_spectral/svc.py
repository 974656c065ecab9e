"""Singular value calibration (SVC, arXiv:2602.05536): undo what experts count several times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, TensorwiseCalibration
from fusion_core.weights import decompose
from fusion_spectral.config import SvcConfig
from fusion_spectral.matrixwise import Matrixwise, zero_rounding

if TYPE_CHECKING:
    from torch import Tensor


class Svc(Matrixwise, TensorwiseCalibration[SvcConfig]):
    """Scale a merge's singular values by how far experts share their directions (2602.05536).

    Formula: base + U diag(f s) V' for the merged task vector U diag(s) V' of a matrix, with
    f = K / sum of max(alpha, s_k) in each direction u. The merge responds to u with a = s v',
    expert k with a_k = u' tau_k, and s_k = <a, a_k> / |a_k|^2 is how often the merge contains the
    expert's part. Directions that several experts share were added up and shrink; directions of a
    single expert grow. A response below 1e-6 of an expert's norm is rounding and counts as alpha.
    All other tensors stay as they are.
    Options: `alpha` (smallest agreement; 1 / experts), `matrices` (`all`).
    Source: arXiv:2602.05536. Data: none. Cost: one eigendecomposition per matrix, of the smaller
    Gram matrix.
    """

    config_class = SvcConfig
    other_tensors = "left as they are"
    pieces_held, squares = (6.5, 3), (0.5, 1)

    def merge(self, piece: Piece) -> Tensor:
        """Scale the singular values of one merged task vector."""
        if not self.takes(piece.shape):
            return piece.merged
        parts = decompose(piece.merged - piece.base)
        responses = parts.values[:, None] * parts.right.mT
        norms = torch.linalg.matrix_norm(piece.task_vectors)
        experts = zero_rounding(parts.left.mT @ piece.task_vectors, norms)
        factors = self._factors(responses, experts)
        return parts._replace(values=factors * parts.values).product().add_(piece.base)

    def _factors(self, merged: Tensor, experts: Tensor) -> Tensor:
        """Return one factor per direction, for responses (rank, n) and (experts, rank, n)."""
        squares = experts.square().sum(-1)
        shares = (merged * experts).sum(-1) / squares.where(squares > 0, 1)
        alpha = 1 / len(experts) if self.config.alpha is None else self.config.alpha
        return len(experts) / shares.clamp_min(alpha).sum(0)
