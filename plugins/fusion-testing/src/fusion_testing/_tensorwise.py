"""The simplest algorithms, which suites use to test pools, transforms and calibrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.algorithm import TensorwiseAlgorithm
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import Piece, sum_in_order

if TYPE_CHECKING:
    from torch import Tensor


class Sum(TensorwiseAlgorithm[ComponentConfig]):
    """The base plus the sum of the task vectors."""

    config_class = ComponentConfig

    def merge(self, piece: Piece) -> Tensor:
        """Return the base plus the sum over experts."""
        return sum_in_order(piece.task_vectors).add_(piece.base)


class Mean(TensorwiseAlgorithm[ComponentConfig]):
    """The mean of the experts."""

    config_class = ComponentConfig

    def merge(self, piece: Piece) -> Tensor:
        """Return the mean over experts."""
        return sum_in_order(piece.experts) / len(piece.experts)
