"""One model, as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import Linear, WeightSource
from fusion_linear.config import PassthroughConfig
from fusion_linear.gram import merge_models

if TYPE_CHECKING:
    from fusion_core import ModelPool


class Passthrough(Algorithm[PassthroughConfig]):
    """Copy one model of the pool: an expert or the base.

    For a look at one model in place of a merge: after a transform (`[trim, passthrough]`), or with
    `only`, which takes some tensors from one expert and all others from the base. No other model is
    read. Shapes: any. Data: none. Cost: a copy.
    """

    config_class = PassthroughConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy copy."""
        name = self._chosen(pool)
        copied = Linear((1.0,), relative=False)
        return merge_models({name: pool.by_name[name]}, pool, copied, context)

    def _chosen(self, pool: ModelPool[Any]) -> str:
        named = self.config.model
        if named not in pool.by_name:
            raise RecipeError(
                f"algorithm.model: there is no model {named!r}",
                hint=f"The models are: {', '.join(pool.by_name)}.",
            )
        return named
