"""TIES-Merging (arXiv:2306.01708): trim, elect sign, disjoint merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import TensorwiseAlgorithm
from fusion_core.weights import Piece, Scan, Scope, Trim
from fusion_ties.combining import disjoint
from fusion_ties.config import TiesConfig

if TYPE_CHECKING:
    from torch import Tensor


class Ties(TensorwiseAlgorithm[TiesConfig]):
    """base + scale * (mean of the kept task-vector entries that have the elected sign).

    An expert's entry is kept if its magnitude is among the `density` largest of the scope; entries
    equal to the smallest kept one are kept too. The elected sign of an entry is that of the
    weighted sum of what is kept. With `normalize: false` the agreeing entries are summed. Shapes:
    any. Thresholds are exact, found by streaming.
    """

    config_class = TiesConfig
    pieces_held = (6, 4)

    @property
    def scope(self) -> Scope:
        """One survey a model, or one a tensor."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> Trim:
        """Find the thresholds, and the majority sign if it is asked for."""
        return Trim.of(scan, self.config.density, majority=self.config.zero_sign == "majority")

    def merge(self, piece: Piece) -> Tensor:
        """Trim, elect, and merge one piece."""
        state: Trim = piece.state
        rows = state.kept(piece.task_vectors).mul_(piece.weights)
        sign = state.sign(rows)
        total = disjoint(rows, sign, piece.weights, normalize=self.config.normalize)
        return total.mul_(self.config.scale).add_(piece.base)
