"""Transforms that choose entries by magnitude or sign: TIES' first two steps, and breadcrumbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Transform
from fusion_core.weights import (
    Electing,
    Piece,
    Scan,
    Scope,
    Trimming,
    kept_count,
    kth_largest_magnitudes,
    per_expert,
)
from fusion_ties.config import BandConfig, ElectConfig, TrimConfig

if TYPE_CHECKING:
    from torch import Tensor


class Trim(Transform[TrimConfig]):
    """Keep the `density` largest entries of each task vector, and zero the others.

    k = max(1, floor(density * n)) are kept, and entries of the k-th magnitude with them; 0 keeps
    none. Shapes: any. Thresholds are exact, found by streaming.
    """

    config_class = TrimConfig

    @property
    def scope(self) -> Scope:
        """One survey a model, or one a tensor."""
        return Scope(self.config.scope)

    def survey(self, scan: Scan) -> Tensor:
        """Find the thresholds."""
        return self._kernel.survey(scan)

    def rows(self, piece: Piece) -> Tensor:
        """Trim one piece."""
        return self._kernel.rows(piece)

    @property
    def _kernel(self) -> Trimming:
        return Trimming(self.config.density)


class Elect(Transform[ElectConfig]):
    """Zero the entries that do not have the elected sign: that of their weighted sum.

    `[trim, elect]` are the first two steps of TIES. Shapes: any.
    """

    config_class = ElectConfig
    pieces_held = (3, 5)

    @property
    def scope(self) -> Scope:
        """The majority's scope; none where entries that cancel are positive."""
        return Scope(self.config.scope if self.config.zero_sign == "majority" else "none")

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the kernel's own
        """Find the sign of the majority."""
        return Electing().survey(scan)

    def rows(self, piece: Piece) -> Tensor:
        """Elect, and keep what agrees."""
        return Electing().rows(piece)


class Band(Transform[BandConfig]):
    """Drop the largest and the smallest entries of each tensor (Model Breadcrumbs, 2312.06795).

    Of n entries, floor(gamma * n) are dropped at the top, then max(1, floor(density * n)) are
    kept, and entries of the smallest or largest kept magnitude with them. Where that is more
    than there are, less is dropped at the top, as in mergekit. Density 1 keeps all, 0 none. Shapes:
    any. One pass finds the thresholds, exactly.
    """

    config_class = BandConfig
    pieces_held = (3, 5)

    @property
    def scope(self) -> Scope:
        """Thresholds are a tensor's own."""
        return Scope.TENSOR

    def survey(self, scan: Scan) -> Tensor:
        """Find the smallest and the largest kept magnitude, of shape (2, experts)."""
        kept = kept_count(self.config.density, scan.numel)
        if not kept or not scan.numel:
            return torch.full((2, len(scan.operands.experts)), torch.inf)
        dropped = min(int(self.config.gamma * scan.numel), scan.numel - kept)
        return kth_largest_magnitudes(scan, (dropped + kept, dropped + 1))

    def rows(self, piece: Piece) -> Tensor:
        """Keep what lies between the thresholds."""
        magnitudes = piece.task_vectors.abs()
        low, high = (per_expert(each, magnitudes) for each in piece.state)
        inside = (magnitudes >= low) & (magnitudes <= high)
        return piece.task_vectors.where(inside, 0)
