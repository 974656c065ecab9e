"""Averages of experts (model soups, arXiv:2203.05482); a base, if there is one, takes no part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, RunContext, TensorwiseAlgorithm, expert_weights
from fusion_core.errors import RecipeError
from fusion_core.weights import Linear, Piece, WeightSource, in_order
from fusion_linear.config import SimpleAverageConfig, WeightedAverageConfig

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
        weights = expert_weights(self.config.weights, list(pool.experts))
        total = sum(weights) if self.config.normalize else 1.0
        if abs(total) < 1e-8 * max(map(abs, weights), default=0.0) or total == 0:
            raise RecipeError(
                f"algorithm.weights sum to {total:g}, which cannot be normalised",
                hint="Change them, or set algorithm.normalize to false.",
            )
        factors = tuple(weight / total for weight in weights)
        return context.merged(pool, Linear(factors, relative=False))
