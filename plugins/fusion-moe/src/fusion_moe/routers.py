"""Routers of low-rank experts, which `smile` adds to the linear layers of a live model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_core.errors import CheckpointError
from fusion_core.weights import CheckpointSource, StateDictSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import WeightSource

#: The file next to the weights. Keys are module/down, module/up and module/bias, and the two below.
FILE = "routers.safetensors"
_GATE_RANK, _EXPERTS_PER_TOKEN = "gate_rank", "experts_per_token"
_PARTS = ("down", "up", "bias")


@dataclass(frozen=True)
class Routing:
    """How the routers of a model choose experts."""

    #: the number of right singular vectors that an expert is chosen by
    gate_rank: int
    experts_per_token: int


@dataclass(frozen=True)
class LowRankExperts:
    """The experts of one linear layer: expert k adds up_k @ down_k @ x + bias_k."""

    #: right singular vectors, the largest value's first, of shape (experts, rank, inputs)
    down: Tensor
    #: left singular vectors times singular values, of shape (experts, outputs, rank)
    up: Tensor
    #: of shape (experts, outputs)
    bias: Tensor


class Router(nn.Module):
    """The experts of one layer in a live model, which move and change their dtype with it."""

    down: Tensor
    up: Tensor
    bias: Tensor

    def __init__(self, experts: LowRankExperts, routing: Routing) -> None:
        super().__init__()
        for part in _PARTS:
            self.register_buffer(part, getattr(experts, part), persistent=False)
        self.routing = routing

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the chosen experts add to the layer's output, of shape (..., outputs)."""
        experts, rank, width = self.down.shape
        flat = inputs @ self.down.reshape(experts * rank, width).mT
        coordinates = flat.reshape(*flat.shape[:-1], experts, rank)
        weights = self.choose(coordinates)
        weighted = (coordinates * weights.unsqueeze(-1)).flatten(-2)
        up = self.up.transpose(1, 2).reshape(experts * rank, -1)
        added: Tensor = weighted @ up + weights @ self.bias
        return added

    def choose(self, coordinates: Tensor) -> Tensor:
        """Return the weight of each expert for each token, zero for those not chosen.

        `coordinates` are those of the tokens in the experts' subspaces, of shape (..., experts,
        rank). The score of an expert is their length.
        """
        seen = coordinates[..., : self.routing.gate_rank]
        wide = seen if seen.dtype is torch.float64 else seen.float()
        scores = wide.norm(dim=-1).softmax(dim=-1)
        best = scores.topk(self.routing.experts_per_token, dim=-1)
        chosen = torch.zeros_like(scores).scatter(-1, best.indices, best.values)
        return (chosen / chosen.sum(dim=-1, keepdim=True)).to(coordinates)


def pack_routers(layers: Mapping[str, LowRankExperts], routing: Routing) -> WeightSource:
    """Return the content of the file."""
    tensors = {
        f"{name}/{part}": getattr(layer, part) for name, layer in layers.items() for part in _PARTS
    }
    tensors[_GATE_RANK] = torch.tensor(routing.gate_rank)
    tensors[_EXPERTS_PER_TOKEN] = torch.tensor(routing.experts_per_token)
    return StateDictSource(tensors, label=FILE)


def add_routers(model: nn.Module, stored: WeightSource | str | Path) -> nn.Module:
    """Add the routers in a directory, or in an opened file, to a live model, and return it.

    The model has the modules of the one that `smile` was given, with the weights of its output:
    `add_routers(AutoModelForCausalLM.from_pretrained("merged"), "merged")`. Raises
    `CheckpointError` for modules that the model lacks or that have other shapes. Add them once.
    """
    if isinstance(stored, str | Path):
        stored = CheckpointSource(Path(stored) / FILE)
    routing, layers = _read(stored)
    modules = {name: _find_module(model, name, layer) for name, layer in layers.items()}
    for name, module in modules.items():
        _attach(module, layers[name], routing)
    return model


def _attach(module: nn.Module, layer: LowRankExperts, routing: Routing) -> None:
    router = Router(layer, routing).to(next(module.parameters()))
    module.add_module("router", router)

    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor = router(inputs[0])
        return output + added

    module.register_forward_hook(hook)


def _read(stored: WeightSource) -> tuple[Routing, dict[str, LowRankExperts]]:
    """Read the file; raise `CheckpointError` for shapes that do not fit each other."""
    names = dict.fromkeys(key.rpartition("/")[0] for key in stored.infos if "/" in key)
    keys = {f"{name}/{part}" for name in names for part in _PARTS} | {
        _GATE_RANK,
        _EXPERTS_PER_TOKEN,
    }
    if not names or keys != set(stored.infos):
        raise _invalid(stored, "expected the tensors down, up and bias of every layer")
    routing = Routing(*(int(stored.tensor(key)) for key in (_GATE_RANK, _EXPERTS_PER_TOKEN)))
    layers = {
        name: LowRankExperts(*(stored.tensor(f"{name}/{part}") for part in _PARTS))
        for name in names
    }
    for name, layer in layers.items():
        if not _fits(layer, routing):
            raise _invalid(stored, f"the shapes of {name} do not fit each other")
    return routing, layers


def _fits(layer: LowRankExperts, routing: Routing) -> bool:
    if (layer.down.dim(), layer.up.dim(), layer.bias.dim()) != (3, 3, 2):
        return False
    experts, rank, _ = layer.down.shape
    return (
        (experts, rank) == (len(layer.up), layer.up.shape[2])
        and layer.bias.shape == layer.up.shape[:2]
        and routing.gate_rank >= 1
        and 1 <= routing.experts_per_token <= experts
    )


def _find_module(model: nn.Module, name: str, layer: LowRankExperts) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise CheckpointError(
            f"{FILE} has a router for {name}, a module that the model lacks",
            hint="Load the model with the class that it was merged with.",
        ) from error
    weight = getattr(module, "weight", None)
    sizes = {layer.down.shape[2], layer.up.shape[1]}
    if not isinstance(weight, torch.Tensor) or set(weight.shape) != sizes:
        raise CheckpointError(f"{FILE}: the router for {name} does not fit the module's weight")
    return module


def _invalid(stored: WeightSource, problem: str) -> CheckpointError:
    return CheckpointError(
        f"invalid routers in {stored.describe()}: {problem}", hint="Merge again with smile."
    )
