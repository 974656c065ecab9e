"""Small live models of several kinds, and tasks on random inputs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fusion_core import AdaptiveTask, Batch, ComponentConfig, FeatureTask, Split, TaskPool
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core import MetricValues

CLASSES = 4


class TiedTransformer(nn.Module):
    """An encoder whose output projection is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.output(self.encoder(self.embedding(_tokens(inputs))).mean(1))[:, :CLASSES]


class Recurrent(nn.Module):
    """A scaled recurrence over an embedding with sparse gradients; a layer takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, sparse=True)
        self.recurrence = nn.LSTM(8, 6, batch_first=True)
        self.idle = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.output = nn.Linear(6, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrence(self.embedding(_tokens(inputs)))
        return self.output(self.scale * states[:, -1])


def _tokens(inputs: torch.Tensor) -> torch.Tensor:
    return (inputs.flatten(1)[:, :6].abs() * 7).long() % 11


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES)
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolution": convolution,
    "transformer": TiedTransformer,
    "recurrent": Recurrent,
}


class RandomTask(AdaptiveTask):
    """Classify noise around a class mean that is the task's own."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.generator_seed = 1000 * number
        means = torch.Generator().manual_seed(number)
        self.means = torch.randn(CLASSES, 3, 4, 4, generator=means)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(self.generator_seed + 97 * step + seed)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        noise = torch.randn(size, 3, 4, 4, generator=generator)
        inputs = self.means[labels] + 0.5 * noise
        return Batch(inputs, None if split is Split.UNLABELED else labels)

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        dtype = next(model.parameters()).dtype
        return model(batch.inputs.to(dtype))

    def evaluate(self, model: nn.Module) -> MetricValues:
        batch = self.batch(0, size=256, split=Split.TEST, seed=12345)
        assert batch.labels is not None
        with torch.no_grad():
            right = self.logits(model, batch).argmax(-1) == batch.labels
        return {"accuracy": float(right.float().mean())}


class TurnedTask(RandomTask, FeatureTask):
    """The same, its head a rotation of the model's outputs that is the task's own."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name, number)
        generator = torch.Generator().manual_seed(50 + number)
        self.rotation = torch.linalg.qr(torch.randn(CLASSES, CLASSES, generator=generator)).Q

    def features(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs.to(next(model.parameters()).dtype))

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.rotation.to(features.dtype)

    logits = FeatureTask.logits


class RandomTasks(TaskPool[ComponentConfig]):
    config_class = ComponentConfig

    def __init__(
        self, names: tuple[str, ...] = ("a", "b"), kind: type[RandomTask] = RandomTask
    ) -> None:
        super().__init__(ComponentConfig())
        self.names = names
        self.kind = kind

    def __getitem__(self, name: str) -> AdaptiveTask:
        return self.kind(name, 1 + list(self.names).index(name))


@pytest.fixture
def tasks() -> RandomTasks:
    return RandomTasks()


@pytest.fixture
def turned_tasks() -> RandomTasks:
    return RandomTasks(("a", "b", "c"), TurnedTask)


def pool_of(
    kind: str = "mlp",
    *,
    experts: int = 2,
    trained: bool = False,
    dtype: torch.dtype = torch.float32,
) -> CheckpointsPool:
    torch.manual_seed(7)
    base = BUILDERS[kind]().to(dtype)
    names = [chr(ord("a") + number) for number in range(experts)]
    models: dict[str, Any] = {}
    for number, name in enumerate(names):
        models[name] = copy.deepcopy(base)
        if trained:
            _train(models[name], RandomTask(name, 1 + number))
        else:
            _perturb(models[name], number)
    return CheckpointsPool(CheckpointsConfig(base=base, models=models))


@pytest.fixture
def make_pool() -> Callable[..., CheckpointsPool]:
    return pool_of


def _perturb(model: nn.Module, number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator))


def _train(model: nn.Module, task: RandomTask) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        batch = task.batch(step, size=64, split=Split.TRAIN, seed=0)
        loss = nn.functional.cross_entropy(task.logits(model, batch), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
