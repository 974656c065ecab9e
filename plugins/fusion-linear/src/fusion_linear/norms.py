"""Equalise the norms of task vectors: among experts before a merge, or of a merge with theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Scan, TensorwiseCalibration, Transform
from fusion_core.weights import Scope, broadcast_per_expert
from fusion_linear.config import NormaliseConfig, RescaleNormConfig
from fusion_linear.gram import get_task_vectors, gram_matrix

if TYPE_CHECKING:
    from torch import Tensor


class Normalise(Transform[NormaliseConfig]):
    """Scale every task vector to the mean of their norms, so that no expert outweighs the others.

    Formula: tau_k * mean of |tau_j| / |tau_k|. Task vectors of zeros stay zero. Methods that sum
    task vectors lose most where one expert moved much further than the others, as DisTaC measured
    (arXiv:2508.01148).
    Options: `scope` (norms over the whole `model` or within each `tensor`; `model`).
    Shapes: any. Data: none. Cost: one more pass.
    """

    config_class = NormaliseConfig

    @property
    def scope(self) -> Scope:
        """Survey the model or every tensor, as the option says."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> Tensor:
        """Return one factor per expert, of shape (experts,)."""
        norms = gram_matrix(scan, get_task_vectors).diagonal().sqrt()
        return norms.mean() / norms.where(norms > 0, 1)

    def rows(self, piece: Piece) -> Tensor:
        """Scale the task vectors of one piece."""
        return piece.task_vectors * broadcast_per_expert(piece.state, piece.task_vectors)


class RescaleNorm(TensorwiseCalibration[RescaleNormConfig]):
    """Scale a merged task vector to the mean norm of the experts'.

    Formula: base + tau * mean of |tau_k| / |tau|. A merged task vector of zeros stays zero. This
    undoes the shrinking by averaging: the mean of K orthogonal task vectors of equal norm is
    1 / sqrt(K) as long as they are.
    Options: `scope` (norms over the whole `model` or within each `tensor`; `model`).
    Shapes: any. Data: none. Cost: one more pass over all models.
    """

    config_class = RescaleNormConfig

    @property
    def scope(self) -> Scope:
        """Survey the model or every tensor, as the option says."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> float:
        """Return the factor of the merged task vector."""
        *experts, merged = gram_matrix(scan, _task_vectors_and_merge).diagonal().sqrt().tolist()
        return sum(experts) / len(experts) / merged if merged else 1.0

    def merge(self, piece: Piece) -> Tensor:
        """Scale the merged task vector of one piece."""
        return (piece.merged - piece.base).mul_(piece.state).add_(piece.base)


def _task_vectors_and_merge(piece: Piece) -> Tensor:
    """Return the experts' task vectors, then the merged one."""
    return torch.cat([piece.task_vectors, (piece.merged - piece.base).unsqueeze(0)])
