"""Parts that the study adds to the plugin: distillation of all weights, and noisy images."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

from fusion_adamerging.config import AdaMergingConfig
from fusion_adapting import Adaptive, Learnable, LiveMerge, Search
from fusion_core import Batch, FeatureTask, Split
from fusion_core.weights import Linear, StateDictSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from fusion_core import MetricValues, ModelPool, RunContext, TaskPool
    from fusion_core.weights import WeightSource


class Distilled(Adaptive[AdaMergingConfig]):
    """A search for all changed weights, with the same start, teachers and batches."""

    config_class = AdaMergingConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the final weights of a search by Adam."""
        merged = context.merge_matrices(pool, Linear((self.config.init,) * len(pool.experts)))
        merged.prepare(context.executor)
        live = LiveMerge(pool, merged, context.device, storage="fp32")
        parameters = {leaf.tensors[0]: leaf.parameter for leaf in live.leaves}
        live.merge(torch.full((len(pool.experts), live.columns), self.config.init))
        weights = self.make_learned(parameters)
        tasks = self.adapted(pool, context)
        passes, store = self.passes(live.model, tasks, context), self.store(context)
        names = [task.name for task in tasks]
        search = Search(self.config, weights, passes, names, store, context)
        search.run(self.objective(pool, tasks, context))
        context.save(
            "numbers", str(sum(tensor.numel() for tensor in weights.tensors.values())).encode()
        )
        weights.write_weights()
        known = pool.layout.pack(merged).state_dict()
        return StateDictSource({**known, **parameters}, label="distilled")

    def make_learned(self, parameters: Mapping[str, nn.Parameter]) -> Learnable:
        """Return what is learned, with the live model's parameters at their start."""
        return Weights(parameters)


class Weights(Learnable):
    """The live model's own parameters, which have their gradients already."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        self._parameters = parameters

    def write_weights(self) -> None:
        """Do nothing: the parameters are already in the model."""

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Move the gradients to the learned tensors."""
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None
            self.tensors[name].grad, parameter.grad = summed(parameter.grad), None

    def shown(self) -> Mapping[str, float]:
        """Return no figures."""
        return {}


class _Disturbed(FeatureTask):
    """A task with noise on its unlabeled images, the same in every run."""

    def __init__(self, task: FeatureTask, noise: float) -> None:
        self.name, self._task, self._noise = task.name, task, noise

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        batch = self._task.batch(step, size=size, split=split, seed=seed)
        assert isinstance(batch.inputs, torch.Tensor)
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        noise = torch.randn(batch.inputs.shape, generator=generator)
        return Batch(batch.inputs + self._noise * noise, batch.labels)

    def features(self, model: nn.Module, inputs: Any) -> Tensor:  # noqa: ANN401 - as the task's
        return self._task.features(model, inputs)

    def head(self, features: Tensor) -> Tensor:
        return self._task.head(features)

    def evaluate(self, model: nn.Module) -> MetricValues:
        return self._task.evaluate(model)


def disturbed(tasks: TaskPool[Any], noise: float) -> TaskPool[Any]:
    """Return the tasks with Gaussian noise on the images to adapt on.

    `noise` is a standard deviation. That of the normalised pixels is about one.
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
    """Return the count of numbers that a run changed from their start."""
    files: dict[str, Any] = context.side_files
    if "numbers" in files:
        return int(files["numbers"])
    rows = json.loads(files["coefficients.json"])["coefficients"].values()
    finer = load(files.get("coefficients.safetensors", save({}))).values()
    moved = sum(value != start for row in rows for value in row.values())
    return moved + sum(coefficients.numel() - 1 for coefficients in finer)
