"""Tiny tasks for algorithms that adapt: generated noise around class means."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from fusion_core.contracts.batch import Batch, Split
from fusion_core.contracts.measurements import Measured
from fusion_core.contracts.task_names import unknown_task
from fusion_core.contracts.task_pool import AdaptiveTask, FeatureTask, TaskPool
from fusion_core.recipe.config import ComponentConfig
from fusion_testing._models import CLASSES, INPUT_SHAPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from fusion_core.contracts.measurements import MetricValues

_TEST_EXAMPLES = 64


class TinyTask(AdaptiveTask):
    """Classify noise around class means, which differ between tasks."""

    def __init__(self, name: str) -> None:
        self.name = name
        generator = _generator("means", name)
        self._means = torch.randn(CLASSES, *INPUT_SHAPE, generator=generator)
        self._head = torch.randn(CLASSES, CLASSES, generator=generator)

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return images of shape (size, *INPUT_SHAPE)."""
        generator = _generator(self.name, split, step, seed)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        noise = torch.randn(size, *INPUT_SHAPE, generator=generator)
        return Batch(
            self._means[labels] + 0.5 * noise, None if split is Split.UNLABELED else labels
        )

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Apply the task's head to the model's scores."""
        scores = _scores(model, cast("Tensor", batch.inputs))
        return scores @ self._head.to(scores)

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Measure the accuracy on a fixed batch."""
        batch = self.batch(0, size=_TEST_EXAMPLES, split=Split.TEST, seed=0)
        batch = batch.to(next(model.parameters()).device)
        with torch.no_grad():
            predicted = self.logits(model, batch).argmax(-1)
        right = predicted.eq(cast("Tensor", batch.labels))
        return Measured({"accuracy": float(right.double().mean())}, right.tolist())


class TinyFeatureTask(FeatureTask, TinyTask):
    """A tiny task whose head reads features, so that several tasks can share a forward pass."""

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the model's scores, which serve as features."""
        return _scores(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        """Apply the task's head to features."""
        return features @ self._head.to(features)


class TinyTasks(TaskPool[ComponentConfig]):
    """One tiny task per name; every second one is a `FeatureTask`."""

    config_class = ComponentConfig

    def __init__(self, names: Sequence[str] = ("a", "b", "c")) -> None:
        super().__init__(ComponentConfig())
        self.names = tuple(names)
        kinds = (TinyTask, TinyFeatureTask)
        self._tasks: dict[str, AdaptiveTask] = {
            name: kinds[number % 2](name) for number, name in enumerate(self.names)
        }

    def __getitem__(self, name: str) -> AdaptiveTask:
        """Return a task by its name; raise `RecipeError` for an unknown name."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]


def _scores(model: nn.Module, inputs: Tensor) -> Tensor:
    scores: Tensor = model(inputs.to(next(model.parameters()).dtype))
    return scores


def _generator(*key: object) -> torch.Generator:
    """Return a generator seeded by a key, the same in every process."""
    number = 0
    for byte in "\0".join(map(str, key)).encode():
        number = (number * 257 + byte) % (2**61 - 1)
    return torch.Generator().manual_seed(number)
