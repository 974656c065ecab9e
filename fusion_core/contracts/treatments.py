"""Tensors that a pool keeps from the method: copied from one model, or averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a tensor gets its values if the pool keeps it from the method."""

    #: copied from the pool's reference, or the mean of all experts
    kind: Literal["copy", "average"]
    #: the treatment in words, for `fuse check`: "copied from base (router: base)"
    description: str


class Average(Algorithm[ComponentConfig]):
    """The mean of all experts, for tensors whose treatment is "average"."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        count = len(pool.experts)
        return context.merge(pool, Linear((1 / count,) * count, relative=False))
