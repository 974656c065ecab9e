"""The merges in the claims of rules, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, ComponentConfig
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import ModelPool, RunContext, WeightSource

AVERAGE, ARITHMETIC, SUM = "simple-average", "task-arithmetic", "task-arithmetic at 1"

#: Algorithms as in a recipe, with default options unless stated.
MERGES: Mapping[str, Any] = {
    AVERAGE: AVERAGE,
    ARITHMETIC: ARITHMETIC,
    "task-arithmetic at 0.6": {"name": ARITHMETIC, "scale": 0.6},
    SUM: {"name": ARITHMETIC, "scale": 1.0},
    "normalise,task-arithmetic": ["normalise", ARITHMETIC],
    "ties": "ties",
    "iso-c": "iso-c",
    "tsv-m": "tsv-m",
    "wudi": "wudi",
    "model-stock": "model-stock",
}
#: The merges that a trial compares, the average first.
TRIED = (AVERAGE, ARITHMETIC, "task-arithmetic at 0.6", SUM, "ties", "iso-c", "tsv-m")


class Mean(Algorithm[ComponentConfig]):
    """The mean of the experts, which needs no plugin."""

    config_class = ComponentConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        count = len(pool.experts)
        return context.merge(pool, Linear((1 / count,) * count, relative=False))
