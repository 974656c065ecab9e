"""Split the linear layers of experts into the base's layers and low-rank task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_adapting import build_live
from fusion_core.errors import WeightsError
from fusion_core.weights import AlignedSource, RenamedSource, decompose, select_names
from fusion_moe.routers import LowRankExperts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource
    from fusion_core.weights import Linear

    #: down, up and bias of one expert
    Factors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class SplitExperts:
    """The linear layers that some expert changed, by the name of the module in live models."""

    pool: ModelPool[Any]
    #: the merged tensors of each layer
    tensors: Mapping[str, Sequence[str]]
    layers: Mapping[str, LowRankExperts]

    @classmethod
    def of(
        cls,
        pool: ModelPool[Any],
        context: RunContext,
        rank: int,
        patterns: Sequence[str] | None = None,
    ) -> SplitExperts:
        """Decompose the layers' task vectors. The base and one expert are live at a time.

        `patterns` choose layers by the names of their tensors; default: all.
        """
        assert pool.base is not None  # noqa: S101 - the specs say that the methods need one
        base = build_live(pool, pool.base, context.device)
        layers = _find_layers(base, pool)
        if patterns is not None:
            tensors = {*chain.from_iterable(layers.values())}
            chosen = select_names(patterns, tensors, "algorithm.routed")
            layers = {name: names for name, names in layers.items() if chosen & {*names}}
        _check_finite(base, layers, "the base")
        factors: dict[str, list[Factors]] = {name: [] for name in layers}
        total = len(pool.experts)
        with context.progress.track("decompose experts", total=total, unit="experts") as advance:
            for expert, weights in pool.experts.items():
                live = build_live(pool, weights, context.device)
                _check_finite(live, layers, f"expert {expert}")
                for name in layers:
                    one, other = live.get_submodule(name), base.get_submodule(name)
                    factors[name].append(_decompose(one, other, rank))
                del live
                advance(1, note=expert)
        changed = {name: parts for name, parts in factors.items() if any(map(_is_changed, parts))}
        joined = {name: _join(parts) for name, parts in changed.items()}
        return cls(pool, {name: layers[name] for name in changed}, joined)

    def merge_rest(self, context: RunContext, merge: Linear) -> WeightSource:
        """Return the base's tensors of these layers, and a linear merge of all others."""
        assert self.pool.base is not None  # noqa: S101 - as in `of`
        from_base = {tensor: tensor for tensors in self.tensors.values() for tensor in tensors}
        rest = context.merge(self.pool, merge)
        return AlignedSource(RenamedSource(self.pool.base, from_base), rest)


def count_factors(pool: ModelPool[Any], rank: int) -> int:
    """Return the bytes that low-rank task vectors of all matrices take in fp32."""
    shapes = [info.shape for info in pool.reference.infos.values() if len(info.shape) == 2]  # noqa: PLR2004
    numbers = sum(min(rank, *shape) * sum(shape) for shape in shapes)
    return 4 * len(pool.experts) * numbers


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
