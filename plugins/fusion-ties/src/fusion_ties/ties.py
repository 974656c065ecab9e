"""TIES-Merging (arXiv:2306.01708): trim, elect sign, disjoint merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.algorithm import TensorwiseAlgorithm
from fusion_core.weights import Piece, Scan, Scope, in_order
from fusion_core.weights.select import (
    agreeing,
    elected_sign,
    kept_count,
    kth_largest_magnitudes,
    majority_sign,
    trimmed,
)
from fusion_ties.config import TiesConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TiesState:
    """What must be known before an entry can be merged."""

    #: each expert's smallest kept magnitude, shape (experts,)
    thresholds: Tensor
    #: the sign of entries that cancel exactly: 1, -1, or 0 where even the majority is tied
    tie: float


class Ties(TensorwiseAlgorithm[TiesConfig]):
    """base + scale * (mean of the kept task-vector entries that have the elected sign).

    An expert's entry is kept if its magnitude is among the `density` largest of the scope; entries
    equal to the smallest kept one are kept too. The elected sign of an entry is that of the
    weighted sum of what is kept. With `normalize: false` the agreeing entries are summed. Shapes:
    any. Thresholds are exact, found by streaming.
    """

    config_class = TiesConfig

    @property
    def scope(self) -> Scope:
        """One survey a model, or one a tensor."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> TiesState:
        """Find the thresholds, and the majority sign if it is asked for."""
        kept = kept_count(self.config.density, scan.numel)
        if kept == 0 or scan.numel == 0:
            return TiesState(torch.full((len(scan.operands.experts),), torch.inf), 1.0)
        thresholds = kth_largest_magnitudes(scan, kept, _task_vectors)
        if self.config.zero_sign == "positive":
            return TiesState(thresholds, 1.0)
        return TiesState(thresholds, majority_sign(scan, thresholds))

    def merge(self, piece: Piece) -> Tensor:
        """Trim, elect, and merge one piece."""
        state: TiesState = piece.state
        rows = trimmed(piece.task_vectors, state.thresholds).mul_(piece.weights)
        sign = elected_sign(rows, state.tie)
        agree = agreeing(rows, sign)
        total = in_order(agree).mul_(sign)
        if self.config.normalize:
            share = in_order(agree.sign_().mul_(piece.weights))
            total /= share + (1 - share.abs().sign_())  # where nobody takes part: by one
        return total.mul_(self.config.scale).add_(piece.base)


def _task_vectors(piece: Piece) -> Tensor:
    return piece.task_vectors
