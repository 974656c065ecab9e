"""Singular value calibration (SVC, arXiv:2602.05536): undoes what experts count twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, TensorwiseCalibration
from fusion_core.weights import decompose, is_matrix
from fusion_spectral.config import SvcConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from torch import Tensor

#: Of an expert's task vector, by its norm: what it may have by rounding in any direction.
_ROUNDING = 1e-6


class Svc(Matrixwise, TensorwiseCalibration[SvcConfig]):
    """Scale every direction of the merged task vector by how far the experts agree with it.

    With the merged task vector D = U S V' of a matrix, a direction's response is a = u'D = s v', an
    expert's a_k = u' tau_k, and s_k = <a, a_k> / |a_k|^2 says how often the merge holds the
    expert's share. The singular value is multiplied by K / (sum over k of max(alpha, s_k)): what
    several experts share was added up and comes down, what is one expert's alone comes up. An
    expert that has nothing in a direction but rounding (1e-6 of its norm) counts with alpha.
    Everything that is not a matrix stays as it is. Data: none. Cost: one eigendecomposition per
    matrix, of its smaller Gram matrix.
    """

    config_class = SvcConfig
    otherwise = "left as they are"
    pieces_held, squares = (6.5, 3), (0.5, 1)

    def merge(self, piece: Piece) -> Tensor:
        """Return base + U diag(factors) U' D."""
        if not is_matrix(piece.shape):
            return piece.merged
        parts = decompose(piece.merged - piece.base)
        responses = parts.values[:, None] * parts.right.mT
        factors = self._factors(responses, _responses(piece.task_vectors, parts.left))
        return parts._replace(values=factors * parts.values).product().add_(piece.base)

    def _factors(self, merged: Tensor, experts: Tensor) -> Tensor:
        """Return one factor per direction, of responses (rank, n) and (experts, rank, n)."""
        squares = experts.square().sum(-1)
        shares = (merged * experts).sum(-1) / squares.where(squares > 0, 1)
        alpha = 1 / len(experts) if self.config.alpha is None else self.config.alpha
        return len(experts) / shares.clamp_min(alpha).sum(0)


def _responses(rows: Tensor, left: Tensor) -> Tensor:
    """Return u' tau_k for every direction, (experts, rank, n): zero where it is rounding."""
    responses: Tensor = left.mT @ rows
    bounds = torch.linalg.matrix_norm(rows) * _ROUNDING
    is_there = torch.linalg.vector_norm(responses, dim=-1) > bounds[:, None]
    kept: Tensor = responses * is_there[:, :, None]
    return kept
