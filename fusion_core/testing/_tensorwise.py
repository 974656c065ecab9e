"""The simplest algorithm there is: what pools are merged by when pools are tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.algorithm import TensorwiseAlgorithm
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import Piece, in_order

if TYPE_CHECKING:
    from torch import Tensor


class Mean(TensorwiseAlgorithm[ComponentConfig]):
    """The mean of the experts."""

    config_class = ComponentConfig

    def merge(self, piece: Piece) -> Tensor:
        """Return the mean over experts."""
        return in_order(piece.experts) / len(piece.experts)
