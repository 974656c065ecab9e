"""Transforms that choose entries by magnitude or sign: TIES' first two steps, and breadcrumbs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core import Transform, expert_values
from fusion_core.weights import Piece, Scan, Scope, broadcast_per_expert
from fusion_thresholds import ElectKernel, TrimKernel, count_for_density, largest_by_rank
from fusion_ties.config import BandConfig, ElectConfig, TrimConfig
from fusion_ties.sums import l1_factors, sum_magnitudes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Trim(Transform[TrimConfig]):
    """Keep the `density` largest entries of each task vector, and zero the others.

    Formula: tau_k where |tau_k| >= its k-th largest magnitude, else 0, with k = max(1,
    floor(density * n)). Density 0 keeps nothing. Thresholds are exact, found by streaming.
    Options: `density` (fraction of entries; 0.2), `scope` (one threshold per `model` or per
    `tensor`; `model`).
    Source: the first step of TIES, arXiv:2306.01708. Shapes: any. Data: none. Cost: several passes.
    """

    config_class = TrimConfig
    is_bounded = True

    @property
    def scope(self) -> Scope:
        """Survey the model or every tensor, as the option says."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> Tensor:
        """Return one threshold per expert."""
        return self._kernel([*scan.operands.experts]).survey(scan)

    def rows(self, piece: Piece) -> Tensor:
        """Trim one piece."""
        return self._kernel(piece.names).rows(piece)

    def _kernel(self, experts: Sequence[str]) -> TrimKernel:
        return TrimKernel(expert_values(self.config.density, experts, "density"))


class Elect(Transform[ElectConfig]):
    """Zero the entries that do not have the elected sign.

    Formula: tau_k where sign(tau_k) = sign(sum of w_j * tau_j), or, for w_k < 0, where they differ;
    else 0. `[trim, elect]` are the first two steps of TIES.
    Options: `scope` (majority of the `model` or of each `tensor`; `model`), `weights` (one factor
    per expert; 1 each), `zero_sign` (sign of entries that cancel exactly; `majority`).
    Source: the second step of TIES, arXiv:2306.01708. Shapes: any. Data: none. Cost: two passes.
    """

    config_class = ElectConfig
    is_bounded = True
    pieces_held = (3, 5)

    @property
    def scope(self) -> Scope:
        """Survey the scope of the majority, or nothing where no majority is needed."""
        return Scope(self.config.scope if self.config.zero_sign == "majority" else "none")

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the kernel's own
        """Return the majority sign."""
        return ElectKernel().survey(scan)

    def rows(self, piece: Piece) -> Tensor:
        """Keep the entries of one piece that have the elected sign."""
        return ElectKernel().rows(piece)


class Band(Transform[BandConfig]):
    """Drop the largest and the smallest entries of each tensor's task vectors.

    Formula: tau_k where |tau_k| is among its `density` largest below its `gamma` largest, else 0.
    Of n entries, floor(gamma * n) are dropped at the top, then max(1, floor(density * n)) are kept,
    and entries equal to the smallest or the largest kept magnitude with them. If these are more
    than n, fewer are dropped at the top, as in mergekit. Density 1 keeps all entries, 0 none.
    Options: `density` (fraction of entries; 0.1), `gamma` (fraction of entries; 0.01), `rescale`
    (`none`; `l1` restores each tensor's sum of magnitudes, as in mergekit).
    Source: the first step of Model Breadcrumbs, arXiv:2312.06795.
    Shapes: any. Data: none. Cost: one more pass, for exact thresholds; for `l1` two.
    """

    config_class = BandConfig
    pieces_held = (3, 5)
    scope = Scope.TENSOR

    @property
    def is_bounded(self) -> bool:
        """Whether entries stay as they are, or become zero."""
        return self.config.rescale == "none"

    def survey(self, scan: Scan) -> Bounds:
        """Return the smallest and the largest kept magnitudes, and the factors of `l1`."""
        names = [*scan.operands.experts]
        densities = expert_values(self.config.density, names, "density")
        gammas = expert_values(self.config.gamma, names, "gamma")
        bands = [
            _find_ranks(density, gamma, scan.numel)
            for density, gamma in zip(densities, gammas, strict=True)
        ]
        lowest, highest = zip(*bands, strict=True)
        bounds = Bounds(*largest_by_rank(scan, (lowest, highest)))
        if self.config.rescale == "none":
            return bounds
        return replace(bounds, factors=l1_factors(scan, bounds.sum_magnitudes))

    def rows(self, piece: Piece) -> Tensor:
        """Keep the entries of one piece between the thresholds."""
        bounds: Bounds = piece.state
        rows = bounds.cut(piece)
        if bounds.factors is not None:
            rows.mul_(broadcast_per_expert(bounds.factors, rows))
        return rows


@dataclass(frozen=True)
class Bounds:
    """The bounds of the entries that each expert keeps. All fields have shape (experts,)."""

    #: the smallest and the largest kept magnitude
    low: Tensor
    high: Tensor
    #: factors of kept entries; None for 1
    factors: Tensor | None = None

    def cut(self, piece: Piece) -> Tensor:
        """Return the task vectors with zeros outside of the bounds."""
        magnitudes = piece.task_vectors.abs()
        low, high = (broadcast_per_expert(bound, magnitudes) for bound in (self.low, self.high))
        inside = (magnitudes >= low) & (magnitudes <= high)
        return piece.task_vectors.where(inside, 0)

    def sum_magnitudes(self, piece: Piece) -> Tensor:
        """Sum each expert's magnitudes in one piece before and after the cut."""
        return sum_magnitudes(piece.task_vectors, self.cut(piece))


def _find_ranks(density: float, gamma: float, numel: int) -> tuple[int, int]:
    """Return the ranks of the smallest and the largest kept entry; 0 if none is kept."""
    count = count_for_density(density, numel) if numel else 0
    dropped = min(int(gamma * numel), numel - count)
    return (dropped + count, dropped + 1) if count else (0, 0)
