"""Pools of small networks, trained on the spot: alike or not, long, of low rank, or strange.

A network of three layers turns inputs into features, which frozen random heads read: one a task. A
class is two clouds of points. The base has seen all tasks with most labels wrong; an expert
goes on from there on one task.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils import parametrize

from fusion_core import AdaptiveTask, Batch, ComponentConfig, TaskPool
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import MetricValues, Split

INPUTS, WIDTH, FEATURES, CLASSES, CLOUDS = 32, 64, 32, 8, 2
TRAINED, UNLABELED, TESTED = 512, 64, 400
BATCH, NOISE, TEMPERATURE = 64, 0.9, 10.0


@dataclass(frozen=True)
class Kind:
    """What is special about a pool."""

    #: the share of a class's place that all tasks have in common
    alike: float = 0.0
    #: all tasks have one head, and the same inputs belong to other classes in each
    conflicting: bool = False
    #: the rank that task vectors may have; None for any
    rank: int | None = None
    #: how much longer one expert is trained, at a higher rate
    longer: int = 1
    #: the experts' hidden units stand in another order
    permuted: bool = False
    #: every expert begins from weights of its own
    strangers: bool = False


KINDS = {
    "apart": Kind(),
    "alike": Kind(alike=0.8),
    "adapters": Kind(rank=2),
    "one longer": Kind(longer=6),
    "conflicting": Kind(alike=1.0, conflicting=True),
    "permuted": Kind(permuted=True),
    "strangers": Kind(strangers=True),
}


class Clouds(AdaptiveTask):
    """Clouds of points and a frozen head."""

    def __init__(
        self, name: str, centres: Tensor, head: Tensor, generator: torch.Generator
    ) -> None:
        self.name = name
        self.head = head
        self.train = _drawn(centres, TRAINED, generator)
        self.unlabeled = _drawn(centres, UNLABELED, generator)
        self.test = _drawn(centres, TESTED, generator)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return unlabeled examples, which begin anew after the last."""
        del split, seed
        rows = torch.arange(step * size, (step + 1) * size) % UNLABELED
        return Batch(self.unlabeled[0][rows])

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return cosines with the head's directions, times a temperature."""
        return self.scores(model, batch.tensors[""])

    def scores(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return logits for inputs."""
        found: Tensor = TEMPERATURE * normalize(model(inputs), dim=-1) @ self.head.T
        return found

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Return the accuracy on the test examples."""
        inputs, labels = self.test
        with torch.inference_mode():
            right = self.scores(model, inputs).argmax(-1) == labels
        return {"accuracy": float(right.double().mean())}


class Toys(TaskPool[ComponentConfig]):
    """Tasks that are there already."""

    config_class = ComponentConfig

    def __init__(self, tasks: Sequence[Clouds]) -> None:
        super().__init__(ComponentConfig())
        self.tasks = {task.name: task for task in tasks}
        self.names = list(self.tasks)

    def __getitem__(self, name: str) -> Clouds:
        """Return a task by its name."""
        if name not in self.tasks:
            raise RecipeError(f"there is no task {name!r}")
        return self.tasks[name]


def make(kind: Kind, count: int, seed: int) -> tuple[dict[str, Any], Toys]:
    """Return a base and `count` experts, and their tasks."""
    generator = torch.Generator().manual_seed(seed)
    tasks = _tasks(kind, count, generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = _trained(_network(), tasks, steps=100, rate=1e-3, wrong=0.7)
        experts = {task.name: _expert(kind, base, task, n) for n, task in enumerate(tasks)}
    return {"base": base, "models": experts}, Toys(tasks)


def _tasks(kind: Kind, count: int, generator: torch.Generator) -> list[Clouds]:
    shape = (CLASSES, CLOUDS, INPUTS)
    shared = torch.randn(shape, generator=generator)
    head = _head(generator)
    tasks = []
    for number in range(count):
        own = torch.randn(shape, generator=generator)
        centres = kind.alike**0.5 * shared + (1 - kind.alike) ** 0.5 * own
        if kind.conflicting:
            centres = centres[torch.randperm(CLASSES, generator=generator)]
        one = head if kind.alike else _head(generator)
        tasks.append(Clouds(f"task-{number}", centres, one, generator))
    return tasks


def _head(generator: torch.Generator) -> Tensor:
    return normalize(torch.randn(CLASSES, FEATURES, generator=generator), dim=-1)


def _drawn(centres: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(CLASSES, (count,), generator=generator)
    clouds = torch.randint(CLOUDS, (count,), generator=generator)
    noise = torch.randn(count, INPUTS, generator=generator)
    return centres[labels, clouds] + NOISE * noise, labels


def _network() -> nn.Sequential:
    layers = (nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, FEATURES))
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def _expert(kind: Kind, base: nn.Sequential, task: Clouds, number: int) -> nn.Module:
    begun = _network() if kind.strangers else copy.deepcopy(base)
    factor = kind.longer if number == 0 else 1
    if kind.rank is not None:
        return _adapted(begun, task, kind.rank)
    expert = _trained(begun, [task], steps=200 * factor, rate=1e-3 * factor)
    return _reordered(expert) if kind.permuted else expert


def _trained(
    model: nn.Sequential, tasks: Sequence[Clouds], *, steps: int, rate: float, wrong: float = 0.0
) -> nn.Sequential:
    optimizer = torch.optim.Adam(
        [parameter for parameter in model.parameters() if parameter.requires_grad], rate
    )
    for _, task in zip(range(steps), itertools.cycle(tasks), strict=False):
        rows = torch.randint(TRAINED, (BATCH,))
        inputs, labels = (each[rows] for each in task.train)
        other = torch.randint(CLASSES, (BATCH,))
        labels = labels.where(torch.rand(BATCH) >= wrong, other)
        optimizer.zero_grad()
        cross_entropy(task.scores(model, inputs), labels).backward()
        optimizer.step()
    return model


class _Adapted(nn.Module):
    """A frozen matrix and a product of two narrow ones, which are trained."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        start = torch.randn(rank, layer.in_features) / layer.in_features**0.5
        self.down = nn.Parameter(start)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def _adapted(model: nn.Sequential, task: Clouds, rank: int) -> nn.Sequential:
    layers = [each for each in model if isinstance(each, nn.Linear)]
    model.requires_grad_(requires_grad=False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _Adapted(layer, rank))
    _trained(model, [task], steps=200, rate=5e-3)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    return model


def _reordered(model: nn.Sequential) -> nn.Sequential:
    """Return a network that computes the same, its hidden units in another order."""
    with torch.no_grad():
        for first, second in ((model[0], model[2]), (model[2], model[4])):
            order = torch.randperm(WIDTH)
            first.weight[:], first.bias[:] = first.weight[order], first.bias[order]
            second.weight[:] = second.weight[:, order]
    return model
