"""Singular value calibration (SVC, arXiv:2602.05536): undoes what experts count twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, Piece, TensorwiseCalibration
from fusion_spectral.config import SvcConfig

if TYPE_CHECKING:
    from torch import Tensor


class Svc(TensorwiseCalibration[SvcConfig]):
    """Scale every direction of the merged task vector by how far the experts agree with it.

    With the merged task vector D = U S V' of a matrix, a direction's response is a = u'D = s v', an
    expert's a_k = u' tau_k, and s_k = <a, a_k> / |a_k|^2 says how often the merge holds the
    expert's share. The singular value is multiplied by K / (sum over k of max(alpha, s_k)): what
    several experts share was added up and comes down, what is one expert's alone comes up.
    Everything that is not a matrix stays as it is. Data: none. Cost: one SVD a matrix.
    """

    config_class = SvcConfig

    @property
    def cut(self) -> Cut:
        """Matrices are whole."""
        return Cut.TENSOR

    def merge(self, piece: Piece) -> Tensor:
        """Return base + U diag(factors) U' D."""
        if len(piece.shape) != 2 or not piece.base.numel():  # noqa: PLR2004 - a matrix
            return piece.merged
        moved = piece.merged - piece.base
        left, values, right = torch.linalg.svd(moved, full_matrices=False)
        factors = self._factors(values[:, None] * right, left.mT @ piece.task_vectors)
        calibrated: Tensor = (left * (factors * values)) @ right
        return calibrated.add_(piece.base)

    def _factors(self, merged: Tensor, experts: Tensor) -> Tensor:
        """Return a factor a direction, of responses (rank, n) and (experts, rank, n)."""
        squares = experts.square().sum(-1)
        shares = (merged * experts).sum(-1) / squares.where(squares > 0, 1)
        alpha = 1 / len(experts) if self.config.alpha is None else self.config.alpha
        return len(experts) / shares.clamp_min(alpha).sum(0)
