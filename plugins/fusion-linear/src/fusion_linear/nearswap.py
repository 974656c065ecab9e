"""NearSwap: move the base towards one expert, entry by entry, by a bounded distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import TensorwiseAlgorithm
from fusion_linear.config import NearswapConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core.weights import Piece


class Nearswap(TensorwiseAlgorithm[NearswapConfig]):
    """Move every entry of the base towards one expert by at most `t`.

    Formula: base + clip(tau, -t, t). The published form, (1 - w) * base + w * expert with
    w = min(1, t / |expert - base|), is equal.
    Options: `t` (in the units of the weights; 0.0001, the value of QuartetAnemoi-70B).
    Source: mergekit's `nearswap` (no paper). Here `t` may be as small as you like. mergekit moves
    entries that are nearer than 1e-6 by t / 1e-6 of the way only.
    Shapes: any. Data: none. Cost: one pass.
    """

    config_class = NearswapConfig

    def merge(self, piece: Piece) -> Tensor:
        """Add the clipped task vector to the base."""
        clipped: Tensor = piece.task_vectors[0].clamp(-self.config.t, self.config.t)
        return clipped.add_(piece.base)
