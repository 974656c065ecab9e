"""Norms of task vectors made equal: before a merge among experts, after one with theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Scan, TensorwiseCalibration, Transform
from fusion_core.weights import Scope, per_expert
from fusion_linear.config import NormaliseConfig, RescaleNormConfig
from fusion_linear.gram import gram_matrix, task_vectors

if TYPE_CHECKING:
    from torch import Tensor


class Normalise(Transform[NormaliseConfig]):
    """Scale every task vector to the mean of their norms, so that no expert outweighs the others.

    tv_k * mean(|tv_j|) / |tv_k|, over whole models or, with `scope: tensor`, tensor by tensor.
    Methods that add task vectors up lose most where one expert went much further than the others
    (measured in DisTaC, arXiv:2508.01148); norms are what can be mended without data. Task vectors
    of zeros stay. Shapes: any. Cost: one pass more.
    """

    config_class = NormaliseConfig

    @property
    def scope(self) -> Scope:
        """One survey a model, or one a tensor."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> Tensor:
        """Find every expert's factor, of shape (experts,)."""
        norms = gram_matrix(scan, task_vectors).diagonal().sqrt()
        return norms.mean() / norms.where(norms > 0, 1)

    def rows(self, piece: Piece) -> Tensor:
        """Scale one piece."""
        return piece.task_vectors * per_expert(piece.state, piece.task_vectors)


class RescaleNorm(TensorwiseCalibration[RescaleNormConfig]):
    """Scale the merged task vector to the mean norm of the experts'.

    base + tv * mean(|tv_k|) / |tv|, over whole models or, with `scope: tensor`, tensor by tensor. A
    mean of task vectors at right angles is 1 / sqrt(K) as long as they are; this undoes it. A
    merged task vector of zeros stays. Shapes: any. Data: none. Cost: one pass more over all models.
    """

    config_class = RescaleNormConfig

    @property
    def scope(self) -> Scope:
        """One survey a model, or one a tensor."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> float:
        """Find the factor."""
        *experts, merged = gram_matrix(scan, _with_merged).diagonal().sqrt().tolist()
        return sum(experts) / len(experts) / merged if merged else 1.0

    def merge(self, piece: Piece) -> Tensor:
        """Scale one piece."""
        return (piece.merged - piece.base).mul_(piece.state).add_(piece.base)


def _with_merged(piece: Piece) -> Tensor:
    """Return the task vectors of the experts and of the merge."""
    return torch.cat([piece.task_vectors, (piece.merged - piece.base).unsqueeze(0)])
