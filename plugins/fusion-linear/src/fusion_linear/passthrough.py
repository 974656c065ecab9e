"""Copy one model."""

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

    Formula: expert_k, or base. Use it to see what a transform does (`[trim, passthrough]`), or with
    `only` to take some tensors from one expert and all others from the base. The other models are
    not read.
    Options: `model` (a name; required). Shapes: any. Data: none. Cost: a copy.
    """

    config_class = PassthroughConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy copy; raises `RecipeError` for an unknown model."""
        name = self.config.model
        if name not in pool.by_name:
            raise RecipeError(
                f"algorithm.model: unknown model {name!r}",
                hint=f"The models are: {', '.join(pool.by_name)}.",
            )
        copy = Linear((1.0,), relative=False)
        return merge_models({name: pool.by_name[name]}, pool, copy, context)
