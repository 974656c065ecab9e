"""Task arithmetic (arXiv:2212.04089)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, RunContext, expert_weights
from fusion_core.weights import Linear, WeightSource
from fusion_linear.config import TaskArithmeticConfig

if TYPE_CHECKING:
    from fusion_core import ModelPool


class TaskArithmetic(Algorithm[TaskArithmeticConfig]):
    """Add the scaled sum of the task vectors to the base (arXiv:2212.04089).

    Formula: base + scale * sum of w_k * (expert_k - base).
    Options: `scale` (factor; 0.3), `weights` (one factor per expert; 1 each).
    Shapes: any. Data: none. Cost: one pass.
    """

    config_class = TaskArithmeticConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy linear combination."""
        weights = expert_weights(self.config.weights, list(pool.experts))
        factors = tuple(self.config.scale * weight for weight in weights)
        return context.merge(pool, Linear(factors))
