"""A small residual network in float64, and the inputs of its layers, computed by hand."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fusion_core import RunOptions, Split, run_fusion
from fusion_testing import TinyTasks
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]

WIDTH, CLASSES = 5, 4


class Block(nn.Module):
    """x + down(tanh(up(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 7)
        self.down = nn.Linear(7, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.down(torch.tanh(self.up(self.norm(states))))


class Stack(nn.Module):
    """Two blocks over two positions, between an embedding of pixels and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, WIDTH)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        states = self.embed(images.reshape(len(images), 2, 24))
        for layer in self.layers:
            states = layer(states)
        return self.head(states.mean(1))


def compute_by_hand(weights: State, images: Tensor) -> dict[str, Tensor]:
    """Return the inputs of each layer, (positions, width), by the name of its weight, and `logits`.

    For a normalisation they are the values that its weight multiplies.
    """

    def linear(name: str, values: Tensor) -> Tensor:
        inputs[f"{name}.weight"] = values
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    inputs: dict[str, Tensor] = {}
    states = linear("embed", images.double().reshape(-1, 24))
    for layer in ("layers.0", "layers.1"):
        centred = states - states.mean(1, keepdim=True)
        normalised = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        inputs[f"{layer}.norm.weight"] = normalised
        scaled = normalised * weights[f"{layer}.norm.weight"] + weights[f"{layer}.norm.bias"]
        states = states + linear(f"{layer}.down", torch.tanh(linear(f"{layer}.up", scaled)))
    inputs["logits"] = linear("head", states.reshape(len(images), 2, WIDTH).mean(1))
    return inputs


class Stacks:
    """Pools of such networks, and merges of them with `TinyTasks`."""

    inputs = staticmethod(compute_by_hand)

    def pool(self, *, experts: int = 3, seed: int = 0, frozen: str = "-") -> CheckpointsPool:
        """Return random experts, which have the base's parameters where names begin so."""
        models: dict[str, Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base = Stack().double().eval()
            for name in "abc"[:experts]:
                models[name] = copy.deepcopy(base)
                for path, parameter in models[name].named_parameters():
                    if not path.startswith(frozen):
                        parameter.data += 0.3 * torch.randn_like(parameter)
        return CheckpointsPool(CheckpointsConfig(base=base, models=models))

    def experts(self, pool: CheckpointsPool) -> dict[str, State]:
        return {name: expert.state_dict() for name, expert in pool.experts.items()}

    def mean(self, pool: CheckpointsPool) -> State:
        models = [*self.experts(pool).values()]
        return {name: torch.stack([model[name] for model in models]).mean(0) for name in models[0]}

    def images(self, task: str, *, samples: int = 40, seed: int = 0) -> Tensor:
        """Return the examples that methods use."""
        size = min(samples, 32)
        steps = [
            TinyTasks()[task].batch(step, size=size, split=Split.UNLABELED, seed=seed).inputs
            for step in range(1 + (samples - 1) // size)
        ]
        return torch.cat(steps)[:samples].double()

    def merge(self, algorithm: Any, pool: CheckpointsPool, *, seed: int = 0) -> State:
        result = run_fusion(
            algorithm=algorithm, model_pool=pool, task_pool=TinyTasks(), seed=seed,
            options=RunOptions(evaluate=False),
        )  # fmt: skip
        return result.weights.state_dict()


@pytest.fixture
def stacks() -> Stacks:
    return Stacks()
