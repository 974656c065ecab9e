"""Averages of experts (model soups, arXiv:2203.05482); a base, if there is one, takes no part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, RunContext, TensorwiseAlgorithm, expert_weights
from fusion_core.weights import Linear, Piece, WeightSource, in_order
from fusion_linear.config import SimpleAverageConfig, WeightedAverageConfig
from fusion_linear.shares import expert_shares

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool


class SimpleAverage(TensorwiseAlgorithm[SimpleAverageConfig]):
    """The mean of the experts, element by element. Shapes: any."""

    config_class = SimpleAverageConfig

    def merge(self, piece: Piece) -> Tensor:
        """Return the mean over experts."""
        return in_order(piece.experts).div_(len(piece.experts))


class WeightedAverage(Algorithm[WeightedAverageConfig]):
    """sum of w_k * expert_k, divided by the sum of w_k if `normalize`. Shapes: any."""

    config_class = WeightedAverageConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy linear combination."""
        return context.merged(pool, Linear(self._factors(list(pool.experts)), relative=False))

    def _factors(self, experts: list[str]) -> tuple[float, ...]:
        weights = self.config.weights
        if not self.config.normalize:
            return tuple(expert_weights(weights, experts))
        hint = "Change them, or set algorithm.normalize to false."
        return expert_shares(weights, experts, hint=hint)
