"""TIES-Merging (arXiv:2306.01708): trim, elect sign, disjoint merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core import TensorwiseAlgorithm, expert_values
from fusion_core.weights import Piece, Scan, Scope, broadcast_per_expert
from fusion_thresholds import TrimSurvey
from fusion_ties.combining import disjoint_merge
from fusion_ties.config import TiesConfig
from fusion_ties.sums import l1_factors, sum_magnitudes

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
    `majority`), `rescale` (`none`; `l1` restores each trimmed task vector's sum of magnitudes, as
    mergekit's option does).
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
        """Whether it is a mean: no larger than the entries it is of."""
        config = self.config
        return config.normalize and config.rescale == "none" and abs(config.scale) <= 1

    def survey(self, scan: Scan) -> tuple[TrimSurvey, Tensor | None]:
        """Return the thresholds, the majority sign if asked for, and the factors of `l1`."""
        density = expert_values(self.config.density, [*scan.operands.experts], "density")
        trimming = TrimSurvey.of(scan, density, majority=self.config.zero_sign == "majority")
        if self.config.rescale == "none":
            return trimming, None
        return trimming, l1_factors(scan, TrimmedSums(trimming))

    def merge(self, piece: Piece) -> Tensor:
        """Trim, elect and merge one piece."""
        trimming, factors = piece.state
        rows = trimming.trim(piece.task_vectors).mul_(piece.weights)
        if factors is not None:
            rows.mul_(broadcast_per_expert(factors, rows))
        sign = trimming.sign(rows)
        total = disjoint_merge(rows, sign, piece.weights, normalize=self.config.normalize)
        return total.mul_(self.config.scale).add_(piece.base)


@dataclass(frozen=True)
class TrimmedSums:
    """Each expert's sums of magnitudes in a piece before and after trimming."""

    trimming: TrimSurvey

    def __call__(self, piece: Piece) -> Tensor:
        """Sum one piece."""
        rows = piece.task_vectors
        return sum_magnitudes(rows, self.trimming.trim(rows))
