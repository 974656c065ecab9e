"""Combine sparse task vectors: sum them, or sum the entries that have the elected sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import expert_weights
from fusion_core.errors import RecipeError
from fusion_core.weights import Kernel, Linear, Piece, sum_in_order
from fusion_thresholds import agreeing_magnitudes, elect_sign

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, Transform
    from fusion_core.weights import WeightSource
    from fusion_ties.config import SparseConfig


#: Weights cancel if their sum is at most this fraction of the largest one.
_CANCELLED = 1e-8


@dataclass(frozen=True)
class DisjointMerge(Kernel):
    """base + scale * sum of w * task vector over the experts that have the elected sign.

    The elected sign is that of the weighted sum, and plus where the sum is exactly zero. With
    `normalize` the sum is divided by the sum of |w| over the same experts.
    """

    scale: float
    normalize: bool

    def merge(self, piece: Piece) -> Tensor:
        """Elect signs and merge one piece."""
        rows = piece.task_vectors * piece.weights
        sign = elect_sign(rows, 1.0)
        total = disjoint_merge(rows, sign, piece.weights, normalize=self.normalize)
        return total.mul_(self.scale).add_(piece.base)


def disjoint_merge(rows: Tensor, sign: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sum the entries that have the elected sign; divide by the sum of their |weights| if asked.

    `rows`, of shape (experts, ...), are already multiplied by the weights. So a
    negative weight negates the expert's task vector.
    """
    agree = agreeing_magnitudes(rows, sign)
    total = sum_in_order(agree).mul_(sign)
    if normalize:
        share = sum_in_order(torch.gt(agree, 0, out=agree).mul_(weights.abs()))
        is_empty = torch.eq(share, 0, out=torch.empty_like(share))
        total /= share.add_(is_empty)  # divides by one where no expert agrees
    return total


def merge_sparse(
    pool: ModelPool[Any],
    transform: Transform[Any],
    config: SparseConfig,
    context: RunContext,
) -> WeightSource:
    """Return the lazy merge of a pool after a transform that makes its task vectors sparse."""
    weights = expert_weights(config.weights, list(pool.experts))
    sparse = context.transform(pool, transform)
    if config.elect == "ties":
        return context.merge(sparse, DisjointMerge(config.scale, config.normalize), weights=weights)
    is_normalized = config.normalize and any(weights)  # of no weight, the merge is the base
    total = sum(weights) if is_normalized else 1.0
    if is_normalized and abs(total) <= _CANCELLED * max(map(abs, weights)):
        raise RecipeError(
            f"algorithm.weights sum to {total:g}, which cannot be normalised",
            hint="Change them, or set normalize: false.",
        )
    scale = config.scale / total
    return context.merge(sparse, Linear(tuple(scale * weight for weight in weights)))
