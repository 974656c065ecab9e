"""TIES-Merging (arXiv:2306.01708): trim, elect sign, disjoint merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusion_core import TensorwiseAlgorithm, expert_values
from fusion_core.weights import Piece, Scan, Scope, TrimSurvey
from fusion_ties.combining import disjoint_merge
from fusion_ties.config import TiesConfig

if TYPE_CHECKING:
    from torch import Tensor


class Ties(TensorwiseAlgorithm[TiesConfig]):
    """Trim task vectors, elect a sign for every entry, and average the entries that have it.

    Formula: base + scale * mean of the t_k with sign(t_k) = sign(sum of w_j * t_j), where t_k is
    tau_k with all but its `density` largest entries set to zero. Entries equal to the smallest kept
    one are kept too. Thresholds are exact, found by streaming.
    Options: `density` (fraction of entries, or one per expert; 0.2), `scale` (factor; 1.0), `scope`
    (one threshold per `model` or per `tensor`; `model`), `weights` (one factor per expert; 1 each),
    `normalize` (mean, not sum; true), `zero_sign` (sign of entries that cancel exactly;
    `majority`).
    Source: arXiv:2306.01708. Shapes: any. Data: none. Cost: several passes.
    """

    config_class = TiesConfig
    pieces_held = (6, 4)

    @property
    def scope(self) -> Scope:
        """Survey the model or every tensor, as the option says."""
        return Scope(self.config.scope)

    @property
    def is_bounded(self) -> bool:
        """Whether weights are positive, so that a mean is no larger than the entries it is of."""
        weights = self.config.weights
        if isinstance(weights, Mapping):
            weights = [*weights.values()]
        elif weights is None or isinstance(weights, int | float):
            weights = [1.0 if weights is None else weights]
        is_mean = self.config.normalize and all(weight >= 0 for weight in weights)
        return is_mean and abs(self.config.scale) <= 1

    def survey(self, scan: Scan) -> TrimSurvey:
        """Return the thresholds, and the majority sign if the option asks for it."""
        density = expert_values(self.config.density, [*scan.operands.experts], "density")
        return TrimSurvey.of(scan, density, majority=self.config.zero_sign == "majority")

    def merge(self, piece: Piece) -> Tensor:
        """Trim, elect and merge one piece."""
        state: TrimSurvey = piece.state
        rows = state.trim(piece.task_vectors).mul_(piece.weights)
        sign = state.sign(rows)
        total = disjoint_merge(rows, sign, piece.weights, normalize=self.config.normalize)
        return total.mul_(self.config.scale).add_(piece.base)
