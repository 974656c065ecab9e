"""NearSwap: an expert's entries where they are near the base's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import TensorwiseAlgorithm
from fusion_linear.config import NearswapConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core.weights import Piece


class Nearswap(TensorwiseAlgorithm[NearswapConfig]):
    """base + the expert's task vector, cut to [-t, t].

    The form that it was published in, (1 - w) * base + w * expert with w = min(1, t / |expert -
    base|), is the same. As mergekit's `nearswap`, for t as small as one likes (mergekit moves
    entries by t / 1e-6 of the way where they are nearer than that). The default is that of the
    model that made it known, QuartetAnemoi-70B. Shapes: any. Data: none. Cost: one pass.
    """

    config_class = NearswapConfig

    def merge(self, piece: Piece) -> Tensor:
        """Move the base."""
        moved: Tensor = piece.task_vectors[0].clamp(-self.config.t, self.config.t)
        return moved.add_(piece.base)
