"""What sparse task vectors are combined by: a sum, or the sum of what has the elected sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import expert_weights
from fusion_core.weights import Kernel, Linear, Piece, agreeing, elected_sign, in_order

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, Transform
    from fusion_core.weights import WeightSource
    from fusion_ties.config import SparseConfig


@dataclass(frozen=True)
class Disjoint(Kernel):
    """base + scale * sum of w * task vector over the experts that have the elected sign.

    That is the sign of the weighted sum; where it is exactly zero, plus. `normalize` divides by the
    sum of w over the same experts.
    """

    scale: float
    normalize: bool

    def merge(self, piece: Piece) -> Tensor:
        """Elect, and merge one piece."""
        rows = piece.task_vectors * piece.weights
        sign = elected_sign(rows, 1.0)
        total = disjoint(rows, sign, piece.weights, normalize=self.normalize)
        return total.mul_(self.scale).add_(piece.base)


def disjoint(rows: Tensor, sign: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sum the rows' entries that have the elected sign, over the weights of those if `normalize`.

    `rows`, of shape (experts, ...), hold the weights already.
    """
    agree = agreeing(rows, sign)
    total = in_order(agree).mul_(sign)
    if normalize:
        share = in_order(torch.gt(agree, 0, out=agree).mul_(weights))
        nobody = torch.eq(share, 0, out=torch.empty_like(share))
        total /= share.add_(nobody)  # where nobody takes part: by one
    return total


def combined(
    pool: ModelPool[Any],
    transform: Transform[Any],
    config: SparseConfig,
    context: RunContext,
    *,
    normalize: bool = False,
) -> WeightSource:
    """Return the lazy merge of a pool's models with the task vectors that a transform makes."""
    weights = expert_weights(config.weights, list(pool.experts))
    sparse = context.transformed(pool, transform)
    if config.elect == "ties":
        return context.merged(sparse, Disjoint(config.scale, normalize), weights=weights)
    scale = config.scale / (sum(weights) or 1.0) if normalize else config.scale
    return context.merged(sparse, Linear(tuple(scale * weight for weight in weights)))
