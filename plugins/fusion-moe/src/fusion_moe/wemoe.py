"""WEMoE (arXiv:2402.00433): linear layers weight the task vectors by their input, as learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import Adaptive, Learnable, Search, build_live, join_ranks
from fusion_core.weights import Linear
from fusion_moe.config import WemoeConfig
from fusion_moe.routers import FILE, Gate, attach_router, pack_routers
from fusion_moe.splitting import SplitExperts, count_factors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource
    from fusion_moe.routers import LearnedRouter

#: The offsets learn at this multiple of the rate: each changes the weights of all inputs.
_OFFSETS = 0.1


class Wemoe(Adaptive[WemoeConfig]):
    """Keep the experts apart in low rank, and let each linear layer weight them by its input.

    Formula, for a layer with input x: W x + b + sum of r_k (U_k S_k V_k' x + b_k - b). W and b are
    the base's. U_k S_k V_k' has the `rank` largest singular components of expert k's task vector.
    r = G x / (n rms(x)) + c, for n inputs, with G and c learned: the search minimises the
    divergence of the predictions from those of each task's expert, or their entropy, on unlabeled
    examples with Adam. It starts at G = 0 and c = `init`, which is task arithmetic. The weights r
    may have any sign and sum. All other tensors are merged by task arithmetic with the scale
    `init`.
    Options: `rank` (32), `routed` (all), `init` (0.3), and those of the search.
    Shapes: as for `smile`.
    Output: as of `smile`; the gates are in `routers.safetensors` too.
    Differences from the paper: it routes feed-forward blocks (`routed: "*mlp*"`), by the mean over
    the tokens of an example, through a network of two layers. Here each linear layer has a router,
    and each token has weights of its own. So the result does not depend on padding or on later
    tokens. The paper minimises the entropy, and keeps task vectors whole.
    Data: unlabeled examples. Cost: one decomposition per expert and layer, then passes forward and
    backward.
    """

    config_class = WemoeConfig

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Return the size of two live models, and of the experts in low rank."""
        return 2 * model + count_factors(pool, self.config.rank)

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search and save the gates; return the base's linear layers, and a merge of all else."""
        experts, ranks = list(pool.experts), join_ranks()
        tasks = self.adapted(pool, context)
        names, own_tasks = [task.name for task in tasks], ranks.share(tasks)
        self.warn_of_few(self.examples_by_task(tasks, context), context)
        objective = self.objective(pool, own_tasks, context)  # before the experts take memory
        split = SplitExperts.of(pool, context, self.config.rank, self.config.routed)
        merged = split.merge_rest(context, Linear((self.config.init,) * len(experts)))
        model = build_live(pool, merged, context.device).requires_grad_(False)
        routers = {}
        for name, layer in split.layers.items():
            routers[name] = Gate.constant(layer, self.config.init).make_router(layer)
            attach_router(model.get_submodule(name), routers[name])
        if routers:  # otherwise no expert changed a linear layer
            passes = self.passes(model, own_tasks, context)
            store = self.store(context, experts=experts, tasks=names, layers=list(routers))
            gates = LearnedGates(routers, experts)
            Search(self.config, gates, passes, names, store, context, ranks).run(objective)
        learned = {name: router.copy_gate() for name, router in routers.items()}
        context.save(FILE, pack_routers(split.layers, learned))
        return merged


class LearnedGates(Learnable):
    """The gates and offsets of all routers of a live model."""

    rate_factors: Mapping[str, float]

    def __init__(self, routers: Mapping[str, LearnedRouter], experts: Sequence[str]) -> None:
        gates = {f"{name}/gate": router.gate for name, router in routers.items()}
        self._offsets = {f"{name}/offset": router.offset for name, router in routers.items()}
        self._experts = experts
        self.tensors = {**gates, **self._offsets}
        self.rate_factors = dict.fromkeys(self._offsets, _OFFSETS)
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)

    def write_weights(self) -> None:
        """Forget the gradients of the last step: the routers use the tensors themselves."""
        for tensor in self.tensors.values():
            tensor.grad = None

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Add up the gradients of all ranks; those of layers that no task called are zero."""
        tensors = [*self.tensors.values()]
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
        flat = summed(torch.cat([gradient.flatten() for gradient in gradients]))
        for tensor, part in zip(
            tensors, flat.split_with_sizes([t.numel() for t in tensors]), strict=True
        ):
            tensor.grad = part.view_as(tensor)

    def shown(self) -> Mapping[str, float]:
        """Return each expert's mean offset over the layers."""
        offsets = torch.stack([offset.detach() for offset in self._offsets.values()])
        means = offsets.mean(dim=0).tolist()
        return {f"weight/{expert}": mean for expert, mean in zip(self._experts, means, strict=True)}
