"""Averages of experts (model soups, arXiv:2203.05482). A base takes no part in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, RunContext, TensorwiseAlgorithm, expert_weights
from fusion_core.weights import Linear, Piece, WeightSource, sum_in_order
from fusion_linear.config import SimpleAverageConfig, WeightedAverageConfig
from fusion_linear.shares import expert_shares

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool


class SimpleAverage(TensorwiseAlgorithm[SimpleAverageConfig]):
    """Average the experts, entry by entry (model soups, arXiv:2203.05482).

    Formula: sum of expert_k / K. Options: none. Shapes: any. Data: none. Cost: one pass.
    """

    config_class = SimpleAverageConfig
    is_bounded = True

    def merge(self, piece: Piece) -> Tensor:
        """Return the mean over the experts."""
        return sum_in_order(piece.experts).div_(len(piece.experts))


class WeightedAverage(Algorithm[WeightedAverageConfig]):
    """Average the experts with one weight per expert (model soups, arXiv:2203.05482).

    Formula: sum of w_k * expert_k / sum of w_k, or the sum alone with `normalize: false`.
    Options: `weights` (one factor per expert; 1 each), `normalize` (true).
    Shapes: any. Data: none. Cost: one pass.
    """

    config_class = WeightedAverageConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy average; raises `RecipeError` for weights that cannot be normalised."""
        weights = self.config.weights
        if self.config.normalize:
            hint = "Change them, or set algorithm.normalize to false."
            factors = expert_shares(weights, pool.experts, hint=hint)
        else:
            factors = tuple(expert_weights(weights, list(pool.experts)))
        return context.merge(pool, Linear(factors, relative=False))
