"""What the study needs beside the plugin: its honest rival, and images of another distribution."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

from fusion_adamerging.adaptive import Adaptive
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.learnable import Learnable
from fusion_adamerging.search import Search
from fusion_adapting import LiveMerge
from fusion_core import Batch, FeatureTask, Split
from fusion_core.weights import Linear, StateDictSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from fusion_core import MetricValues, ModelPool, RunContext, TaskPool
    from fusion_core.weights import WeightSource


class Distilled(Adaptive[AdaMergingConfig]):
    """Every weight that an expert changed is learned, from the same start, teachers and batches."""

    config_class = AdaMergingConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the weights that a search by Adam ends with."""
        merged = context.merge_matrices(pool, Linear((self.config.init,) * len(pool.experts)))
        merged.prepare(context.executor)
        live = LiveMerge(pool, merged, context.device)
        weights = Weights({leaf.tensors[0]: leaf.parameter for leaf in live.leaves})
        live.merge(torch.full((len(pool.experts), live.columns), self.config.init))
        tasks = self.adapted(pool, context)
        passes, store = self.passes(live.model, tasks, context), self.store(context)
        names = [task.name for task in tasks]
        search = Search(self.config, weights, passes, names, store, context)
        search.run(lambda steps: self.objective(pool, passes, steps, context))
        context.save(
            "numbers", str(sum(tensor.numel() for tensor in weights.tensors.values())).encode()
        )
        known = pool.layout.pack(merged).state_dict()
        return StateDictSource({**known, **weights.tensors}, label="distilled")


class Weights(Learnable):
    """The live model's own parameters: they have their gradients already."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.tensors = {name: each.detach() for name, each in parameters.items()}
        self._parameters = parameters

    def place(self) -> None:
        """Leave them where they are."""

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Hand over the gradients."""
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None
            self.tensors[name].grad, parameter.grad = summed(parameter.grad), None

    def shown(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}


class _Disturbed(FeatureTask):
    """A task whose unlabeled images have noise, the same in every run."""

    def __init__(self, task: FeatureTask, noise: float) -> None:
        self.name, self._task, self._noise = task.name, task, noise

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        given = self._task.batch(step, size=size, split=split, seed=seed)
        assert isinstance(given.inputs, torch.Tensor)
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        noise = torch.randn(given.inputs.shape, generator=generator)
        return Batch(given.inputs + self._noise * noise, given.labels)

    def features(self, model: nn.Module, inputs: Any) -> Tensor:  # noqa: ANN401 - as the task's
        return self._task.features(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        return self._task.head(features)

    def evaluate(self, model: nn.Module) -> MetricValues:
        return self._task.evaluate(model)


def disturbed(tasks: TaskPool[Any], noise: float) -> TaskPool[Any]:
    """Return tasks to adapt on whose images have Gaussian noise of a standard deviation.

    Pixels are normalised: their own standard deviation is about one.
    """
    if not noise:
        return tasks

    class Disturbed(type(tasks)):  # type: ignore[misc]
        def __getitem__(self, name: str) -> _Disturbed:
            return _Disturbed(super().__getitem__(name), noise)

    clone = copy.copy(tasks)
    clone.__class__ = Disturbed
    return clone


def counted(context: RunContext, start: float) -> int:
    """Return how many numbers a run has learned: those that are not as they were at first."""
    files: dict[str, Any] = context.side_files
    if "numbers" in files:
        return int(files["numbers"])
    rows = json.loads(files["coefficients.json"])["coefficients"].values()
    finer = load(files.get("coefficients.safetensors", save({}))).values()
    moved = sum(value != start for row in rows for value in row.values())
    return moved + sum(each.numel() - 1 for each in finer)
