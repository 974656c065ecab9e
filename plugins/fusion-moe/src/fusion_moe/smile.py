"""SMILE (arXiv:2408.10174): every linear layer chooses among the experts' task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm
from fusion_core.errors import RecipeError
from fusion_core.weights import Linear
from fusion_moe.config import SmileConfig
from fusion_moe.routers import FILE, Routing, pack_routers
from fusion_moe.splitting import SplitExperts, count_factors

if TYPE_CHECKING:
    from fusion_core import ModelPool, RunContext, WeightSource


class Smile(Algorithm[SmileConfig]):
    """Keep the experts apart in low rank, and let each linear layer choose by its input.

    Formula, for a layer with input x: W x + b + sum of p_k (U_k S_k V_k' x + b_k - b). W and b are
    the base's. U_k S_k V_k' has the `rank` largest singular components of expert k's task vector.
    p is the softmax over experts of |V_k' x|, in which V_k has the `gate_rank` largest components;
    all but the `experts_per_token` largest become zero, and the rest is divided by its sum. All
    other tensors are averaged.
    Options: `rank` (32), `gate_rank` (16, at most `rank`), `experts_per_token` (1).
    Shapes: `torch.nn.Linear` and GPT-2's `Conv1D`, also fused ones. Embeddings, and heads that
    share their weights, are averaged, and so are packed experts of a mixture and the projections of
    `torch.nn.MultiheadAttention`.
    Output: the base's linear layers, the averages, and the experts in `routers.safetensors`.
    `fusion_core.build_for_task(directory)` returns the whole model, and
    `fusion_moe.routers.add_routers(model, directory)` completes one that transformers loaded.
    Data: none. Cost: one decomposition per expert and layer, with the base and one expert live.
    """

    config_class = SmileConfig

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Return the size of the live base, one live expert, and the experts in low rank."""
        return 2 * model + count_factors(pool, self.config.rank)

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Save the routers; return the base's linear layers and averages of all else."""
        config, count = self.config, len(pool.experts)
        if config.experts_per_token > count:
            raise RecipeError(
                f"algorithm.experts_per_token: {config.experts_per_token} of {count} experts",
                hint=f"Choose at most {count}.",
            )
        split = SplitExperts.of(pool, context, config.rank)
        routing = Routing(config.router_rank, config.experts_per_token)
        context.save(FILE, pack_routers(split.layers, routing))
        return split.merge_rest(context, Linear((1 / count,) * count, relative=False))
