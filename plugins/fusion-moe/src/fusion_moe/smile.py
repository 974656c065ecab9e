"""SMILE (arXiv:2408.10174): every linear layer chooses among the experts' task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_adapting import build_live
from fusion_core import Algorithm
from fusion_core.errors import RecipeError, WeightsError
from fusion_core.weights import AlignedSource, Linear, RenamedSource, decompose
from fusion_moe.config import SmileConfig
from fusion_moe.routers import FILE, LowRankExperts, Routing, pack_routers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource

    #: down, up and bias of one expert
    Factors = tuple[Tensor, Tensor, Tensor]


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
        """Return the size of the live base and one live expert."""
        del pool
        return 2 * model

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Save the routers; return the base's linear layers and averages of all else."""
        config, count = self.config, len(pool.experts)
        if config.experts_per_token > count:
            raise RecipeError(
                f"algorithm.experts_per_token: {config.experts_per_token} of {count} experts",
                hint=f"Choose at most {count}.",
            )
        assert pool.base is not None  # noqa: S101 - the spec says that it needs one
        base = build_live(pool, pool.base, context.device)
        layers = _find_layers(base, pool)
        _check_finite(base, layers, "the base")
        factors: dict[str, list[Factors]] = {name: [] for name in layers}
        with context.progress.track("decompose experts", total=count, unit="experts") as advance:
            for expert, weights in pool.experts.items():
                live = build_live(pool, weights, context.device)
                _check_finite(live, layers, f"expert {expert}")
                for name in layers:
                    one, other = live.get_submodule(name), base.get_submodule(name)
                    factors[name].append(_decompose(one, other, config.rank))
                del live
                advance(1, note=expert)
        changed = {name: parts for name, parts in factors.items() if any(map(_is_changed, parts))}
        routing = Routing(config.router_rank, config.experts_per_token)
        context.save(FILE, pack_routers({n: _join(p) for n, p in changed.items()}, routing))
        average = context.merge(pool, Linear((1 / count,) * count, relative=False))
        routed = {tensor: tensor for name in changed for tensor in layers[name]}
        return AlignedSource(RenamedSource(pool.base, routed), average)


def _find_layers(model: nn.Module, pool: ModelPool[Any]) -> Mapping[str, Sequence[str]]:
    """Return the merged tensors of each linear layer whose weights no other module uses."""
    owners: dict[int, int] = {}
    for module in model.modules():
        # torch's attention uses the weights of `out_proj` without a call of the layer
        recurse = isinstance(module, nn.MultiheadAttention)
        for parameter in module.parameters(recurse=recurse):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    names: dict[int, list[str]] = {}
    for name, parameter in pool.parameters(model).items():
        names.setdefault(id(parameter), []).append(name)
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            parameters = [*module.parameters(recurse=False)]
            if all(owners[id(p)] == 1 and id(p) in names for p in parameters):
                layers[name] = [tensor for p in parameters for tensor in names[id(p)]]
    return layers


def _check_finite(model: nn.Module, layers: Mapping[str, Sequence[str]], label: str) -> None:
    for name, tensors in layers.items():
        module = model.get_submodule(name)
        if not all(parameter.isfinite().all() for parameter in module.parameters(recurse=False)):
            raise WeightsError(
                f"{label}: NaN or infinity in {' or '.join(map(repr, tensors))}",
                hint="Check the models: fuse check RECIPE --scan",
            )


@torch.no_grad()
def _decompose(expert: nn.Module, base: nn.Module, rank: int) -> Factors:
    """Return the largest components of a layer's task vector, and the change of its bias."""
    change = _matrix(expert) - _matrix(base)
    bias = change.new_zeros(len(change))
    if getattr(base, "bias", None) is not None:
        bias = expert.bias - base.bias  # type: ignore[operator] # parameters
    components = decompose(change).largest(rank)
    return components.right.mT.cpu(), (components.left * components.values).cpu(), bias.cpu()


def _matrix(layer: nn.Module) -> Tensor:
    """Return the weight of a layer, of shape (outputs, inputs)."""
    weight: Any = layer.weight
    matrix: Tensor = weight.detach() if isinstance(layer, nn.Linear) else weight.detach().mT
    return matrix


def _is_changed(factors: Factors) -> bool:
    _, up, bias = factors
    return up.shape[1] > 0 or bool(bias.any())


def _join(factors: Sequence[Factors]) -> LowRankExperts:
    """Stack the factors of all experts; those of lower rank get components that are zero."""
    rank = max(1, *(up.shape[1] for _, up, _ in factors))
    down, up, bias = zip(*factors, strict=True)
    return LowRankExperts(
        torch.stack([nn.functional.pad(one, (0, 0, 0, rank - len(one))) for one in down]),
        torch.stack([nn.functional.pad(one, (0, rank - one.shape[1])) for one in up]),
        torch.stack(bias),
    )
