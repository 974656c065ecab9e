"""AdaMerging++ (arXiv:2310.02575): coefficients of task vectors that TIES trimmed and elected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights import Linear, Piece, Scan, Scope, Trim, agreeing

if TYPE_CHECKING:
    from torch import Tensor


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

    def survey(self, scan: Scan) -> Trim:
        """Find the thresholds and the sign of the majority."""
        return Trim.of(scan, self.density)

    def rows(self, piece: Piece) -> Tensor:
        """Return the entries that are left, in their places."""
        state: Trim = piece.state
        rows = state.kept(piece.task_vectors)
        sign = state.sign(rows)
        return agreeing(rows, sign).mul_(sign)
