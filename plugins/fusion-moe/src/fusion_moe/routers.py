"""Routers of low-rank experts, which `smile` and `wemoe` add to linear layers of live models."""

from __future__ import annotations

from abc import abstractmethod
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

#: The file next to the weights. Keys are module/part, with these parts, and those of the routing.
FILE = "routers.safetensors"
_PARTS = ("down", "up", "bias")
#: The further parts of a module whose gate was learned.
_GATE_PARTS = ("gate", "offset")
#: The numbers that are the routing of a file without learned gates.
_GATE_RANK, _EXPERTS_PER_TOKEN = "gate_rank", "experts_per_token"


@dataclass(frozen=True)
class LowRankExperts:
    """The experts of one linear layer: expert k adds up_k @ down_k @ x + bias_k."""

    #: right singular vectors, the largest value's first, of shape (experts, rank, inputs)
    down: Tensor
    #: left singular vectors times singular values, of shape (experts, outputs, rank)
    up: Tensor
    #: of shape (experts, outputs)
    bias: Tensor

    @property
    def fit(self) -> bool:
        """Whether the shapes fit each other."""
        if (self.down.dim(), self.up.dim(), self.bias.dim()) != (3, 3, 2):
            return False
        shape = (len(self.up), self.up.shape[2])
        return self.down.shape[:2] == shape and self.bias.shape == self.up.shape[:2]


@dataclass(frozen=True)
class Routing:
    """Choose experts by the length of the input in their subspaces."""

    #: the number of right singular vectors that an expert is chosen by
    gate_rank: int
    experts_per_token: int

    def fits(self, experts: LowRankExperts) -> bool:
        """Tell whether it can choose among these experts."""
        return self.gate_rank >= 1 and 1 <= self.experts_per_token <= len(experts.down)

    def make_router(self, experts: LowRankExperts) -> Router:
        """Return a module of these experts."""
        return LengthRouter(experts, self)


@dataclass(frozen=True)
class Gate:
    """Weight experts by a linear function of the input, which was learned."""

    #: of shape (experts, inputs)
    gate: Tensor
    #: of shape (experts)
    offset: Tensor

    @classmethod
    def constant(cls, experts: LowRankExperts, weight: float) -> Gate:
        """Return the gate that gives every expert the same weight, whatever the input."""
        count, _, width = experts.down.shape
        return cls(experts.down.new_zeros(count, width), experts.down.new_full((count,), weight))

    def fits(self, experts: LowRankExperts) -> bool:
        """Tell whether it weights these experts."""
        count, _, width = experts.down.shape
        return self.gate.shape == (count, width) and self.offset.shape == (count,)

    def make_router(self, experts: LowRankExperts) -> LearnedRouter:
        """Return a module of these experts."""
        return LearnedRouter(experts, self)


class Router(nn.Module):
    """The experts of one layer in a live model, which move and change their dtype with it."""

    down: Tensor
    up: Tensor
    bias: Tensor

    def __init__(self, experts: LowRankExperts) -> None:
        super().__init__()
        for part in _PARTS:
            self.register_buffer(part, getattr(experts, part), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the experts add to the layer's output, of shape (..., outputs)."""
        experts, rank, width = self.down.shape
        flat = inputs @ self.down.reshape(experts * rank, width).mT
        coordinates = flat.reshape(*flat.shape[:-1], experts, rank)
        weights = self.weigh(inputs, coordinates).to(coordinates)
        weighted = (coordinates * weights.unsqueeze(-1)).flatten(-2)
        up = self.up.transpose(1, 2).reshape(experts * rank, -1)
        added: Tensor = weighted @ up + weights @ self.bias
        return added

    @abstractmethod
    def weigh(self, inputs: Tensor, coordinates: Tensor) -> Tensor:
        """Return the weight of each expert for each token, of shape (..., experts).

        `coordinates` are those of the tokens in the experts' subspaces, of shape (..., experts,
        rank).
        """


class LengthRouter(Router):
    """Chooses the experts in whose subspaces the input is longest."""

    def __init__(self, experts: LowRankExperts, routing: Routing) -> None:
        super().__init__(experts)
        self.routing = routing

    def weigh(self, inputs: Tensor, coordinates: Tensor) -> Tensor:
        """Return weights that add up to one, zero for experts that are not chosen."""
        del inputs
        scores = _widen(coordinates[..., : self.routing.gate_rank]).norm(dim=-1).softmax(dim=-1)
        best = scores.topk(self.routing.experts_per_token, dim=-1)
        chosen = torch.zeros_like(scores).scatter(-1, best.indices, best.values)
        return chosen / chosen.sum(dim=-1, keepdim=True)


class LearnedRouter(Router):
    """Weights the experts by a linear function of the input's direction.

    The input is divided by its root mean square, and the product by the number of inputs. So a step
    of the gate changes the weights by as much in every layer, however wide, and whatever the size
    of its inputs.
    """

    gate: Tensor
    offset: Tensor

    def __init__(self, experts: LowRankExperts, gate: Gate) -> None:
        super().__init__(experts)
        for part in _GATE_PARTS:
            self.register_buffer(part, getattr(gate, part), persistent=False)

    def copy_gate(self) -> Gate:
        """Return a copy of what was learned, on the CPU."""
        return Gate(self.gate.detach().cpu().clone(), self.offset.detach().cpu().clone())

    def weigh(self, inputs: Tensor, coordinates: Tensor) -> Tensor:
        """Return weights of any size and sign."""
        del coordinates
        wide = _widen(inputs)
        direction = nn.functional.rms_norm(wide, wide.shape[-1:])
        gate, offset = self.gate.to(wide), self.offset.to(wide)
        weights: Tensor = direction @ gate.mT / wide.shape[-1] + offset
        return weights


def _widen(values: Tensor) -> Tensor:
    return values if values.dtype is torch.float64 else values.float()


def pack_routers(
    layers: Mapping[str, LowRankExperts], routing: Routing | Mapping[str, Gate]
) -> WeightSource:
    """Return the content of the file. Learned gates have the same names as the layers."""
    tensors = {
        f"{name}/{part}": getattr(layer, part) for name, layer in layers.items() for part in _PARTS
    }
    if isinstance(routing, Routing):
        tensors[_GATE_RANK] = torch.tensor(routing.gate_rank)
        tensors[_EXPERTS_PER_TOKEN] = torch.tensor(routing.experts_per_token)
    else:
        for name, gate in routing.items():
            tensors |= {f"{name}/{part}": getattr(gate, part) for part in _GATE_PARTS}
    return StateDictSource(tensors, label=FILE)


def add_routers(model: nn.Module, stored: WeightSource | str | Path) -> nn.Module:
    """Add the routers in a directory, or in an opened file, to a live model, and return it.

    The model has the modules of the one that `smile` or `wemoe` was given, with the weights of its
    output: `add_routers(AutoModelForCausalLM.from_pretrained("merged"), "merged")`. Raises
    `CheckpointError` for modules that the model lacks or that have other shapes. Add them once.
    """
    if isinstance(stored, str | Path):
        stored = CheckpointSource(Path(stored) / FILE)
    routers = _read(stored)
    modules = {name: _find_module(model, name, router) for name, router in routers.items()}
    for name, module in modules.items():
        attach_router(module, routers[name])
    return model


def attach_router(module: nn.Module, router: Router) -> None:
    """Let a linear layer add what its router returns. The router moves to the layer's device."""
    module.add_module("router", router.to(next(module.parameters())))

    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor = router(inputs[0])
        return output + added

    module.register_forward_hook(hook)


def _read(stored: WeightSource) -> dict[str, Router]:
    """Read the file; raise `CheckpointError` for shapes that do not fit each other."""
    names = dict.fromkeys(key.rpartition("/")[0] for key in stored.infos if "/" in key)
    is_learned = _GATE_RANK not in stored.infos
    parts = (*_PARTS, *_GATE_PARTS) if is_learned else _PARTS
    keys = {f"{name}/{part}" for name in names for part in parts}
    numbers = () if is_learned else (_GATE_RANK, _EXPERTS_PER_TOKEN)
    if not keys | set(numbers) or keys | set(numbers) != set(stored.infos):
        raise _invalid(stored, f"expected the tensors {', '.join(parts)} of every layer")
    routing = None if is_learned else Routing(*(int(stored.tensor(key)) for key in numbers))
    routers = {}
    for name in names:
        experts = LowRankExperts(*(stored.tensor(f"{name}/{part}") for part in _PARTS))
        chosen_by = routing or Gate(*(stored.tensor(f"{name}/{part}") for part in _GATE_PARTS))
        if not (experts.fit and chosen_by.fits(experts)):
            raise _invalid(stored, f"the shapes of {name} do not fit each other")
        routers[name] = chosen_by.make_router(experts)
    return routers


def _find_module(model: nn.Module, name: str, router: Router) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise CheckpointError(
            f"{FILE} has a router for {name}, a module that the model lacks",
            hint="Load the model with the class that it was merged with.",
        ) from error
    weight = getattr(module, "weight", None)
    sizes = {router.down.shape[2], router.up.shape[1]}
    if not isinstance(weight, Tensor) or set(weight.shape) != sizes:
        raise CheckpointError(f"{FILE}: the router for {name} does not fit the module's weight")
    return module


def _invalid(stored: WeightSource, problem: str) -> CheckpointError:
    return CheckpointError(
        f"invalid routers in {stored.describe()}: {problem}", hint="Merge again."
    )
