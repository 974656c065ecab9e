"""Tiny live models of several kinds, and pools of them.

All models take images of `INPUT_SHAPE` and return scores for `CLASSES` classes, so every task fits
every model. Weights depend on the arguments only, not on global random state.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLASSES = 4
INPUT_SHAPE = (3, 4, 4)

_WORDS, _WIDTH, _LENGTH = 11, 8, 6


def mlp() -> nn.Module:
    """Return a perceptron of two linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def convolution() -> nn.Module:
    """Return a convolution with batch normalisation, which has float and integer buffers."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES)
    )


class TiedTransformer(nn.Module):
    """An encoder with tied embeddings, and with a scalar, an empty and a boolean tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        layer = nn.TransformerEncoderLayer(_WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.output = nn.Linear(_WIDTH, _WORDS, bias=False)
        self.output.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("unused", torch.zeros(0, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map pixels to words, and return scores for the first words of the vocabulary."""
        words = (inputs.float().flatten(1)[:, :_LENGTH].abs() * 7).long() % _WORDS
        scores: torch.Tensor = self.output(self.encoder(self.embedding(words)).mean(1))
        return scores[:, :CLASSES] * self.scale


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolution": convolution,
    "transformer": TiedTransformer,
}


def tiny_model(kind: str, *, seed: int = 0) -> nn.Module:
    """Return a model of a kind in `MODELS`, in evaluation mode, with weights drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[kind]().eval()


def tiny_pool(  # noqa: PLR0913 - one per property of a pool
    kind: str = "mlp",
    *,
    experts: int = 3,
    base: bool = True,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.2,
    seed: int = 0,
) -> CheckpointsPool:
    """Return a pool of live models: a base, and experts `a`, `b`, ... that differ from it.

    `spread` is the standard deviation of an expert's differences; with 0, all models are equal.
    """
    origin = tiny_model(kind, seed=seed)
    models: dict[str, Any] = {}
    for number in range(experts):
        generator = torch.Generator().manual_seed(1000 * (seed + 1) + number)
        expert = copy.deepcopy(origin)
        if spread:
            _move(expert, generator, spread)
        models[chr(ord("a") + number)] = expert.to(dtype)
    return CheckpointsPool(
        CheckpointsConfig(base=origin.to(dtype) if base else None, models=models)
    )


@torch.no_grad()
def _move(model: nn.Module, generator: torch.Generator, spread: float) -> None:
    """Change parameters and running statistics as training would. Variances stay positive."""
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.add_(7)
        elif buffer.is_floating_point():
            buffer.add_(torch.rand(buffer.shape, generator=generator), alpha=spread)
