"""Pools of live models: the tiny ones of the testing kit, and a recurrence."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fusion_testing import tiny_pool
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable


class Recurrent(nn.Module):
    """A scaled recurrence over an embedding with sparse gradients; a layer takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, sparse=True)
        self.recurrence = nn.LSTM(8, 6, batch_first=True)
        self.idle = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.output = nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        words = (inputs.flatten(1)[:, :6].abs() * 7).long() % 11
        states, _ = self.recurrence(self.embedding(words))
        return self.output(self.scale * states[:, -1])


def pool_of(kind: str, *, experts: int = 3, dtype: torch.dtype = torch.float32) -> CheckpointsPool:
    if kind != "recurrent":
        return tiny_pool(kind, experts=experts, dtype=dtype)
    models = {}
    with torch.random.fork_rng(devices=[]):
        for seed, name in enumerate("abc"[:experts]):
            torch.manual_seed(seed)
            models[name] = Recurrent().to(dtype)
    return CheckpointsPool(CheckpointsConfig(base=copy.deepcopy(models["a"]), models=models))


@pytest.fixture
def make_pool() -> Callable[..., CheckpointsPool]:
    return pool_of
