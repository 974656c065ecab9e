"""The mean of all experts, for tensors that a pool wants averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource


class Average(Algorithm[ComponentConfig]):
    """The mean of all experts, for tensors whose treatment is "average"."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        count = len(pool.experts)
        return context.merge(pool, Linear((1 / count,) * count, relative=False))
