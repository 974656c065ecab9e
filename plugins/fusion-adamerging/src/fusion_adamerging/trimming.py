"""AdaMerging++ (arXiv:2310.02575): coefficients of task vectors that TIES trimmed and elected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights import Linear, Piece, Scan, Scope
from fusion_core.weights.select import (
    agreeing,
    elected_sign,
    kept_count,
    kth_largest_magnitudes,
    majority_sign,
    trimmed,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrimState:
    """What must be known before an entry can be trimmed."""

    #: each expert's smallest kept magnitude, shape (experts,)
    thresholds: Tensor
    #: the sign of entries that cancel exactly: 1, -1, or 0 where even the majority is tied
    tie: float


@dataclass(frozen=True)
class TrimmedLinear(Linear):
    """base + sum of coefficient * trimmed task vector.

    Of each task vector the `density` largest entries of the whole model are kept, then those that
    have the sign of their sum over the experts (arXiv:2306.01708, the first two steps of TIES).
    """

    density: float = 0.2

    @property
    def scope(self) -> Scope:
        """Thresholds are the whole model's."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> TrimState:
        """Find the thresholds and the sign of the majority."""
        kept = kept_count(self.density, scan.numel)
        thresholds = kth_largest_magnitudes(scan, kept, _task_vectors)
        return TrimState(thresholds, majority_sign(scan, thresholds))

    def rows(self, piece: Piece) -> Tensor:
        """Return the entries that are left, in their places."""
        state: TrimState = piece.state
        rows = trimmed(piece.task_vectors, state.thresholds)
        sign = elected_sign(rows, state.tie)
        return agreeing(rows, sign).mul_(sign)


def _task_vectors(piece: Piece) -> Tensor:
    return piece.task_vectors
