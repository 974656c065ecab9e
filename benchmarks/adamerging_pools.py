"""Pools of random ViT-B/32 towers and random images, for benchmarks/adamerging_children.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from adamerging_givens import batch_of, config, head_of
from transformers import CLIPVisionModel

from fusion_core import Batch, ComponentConfig, FeatureTask, ModelPool, TaskPool, build_model
from fusion_core.weights import CheckpointSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion_core import WeightSource

_PREFIX = "vision_model."


class Towers(ModelPool[ComponentConfig]):
    """A base and its experts, one directory per model."""

    def __init__(self, folder: Path, experts: int) -> None:
        super().__init__(ComponentConfig())
        self.base = CheckpointSource(folder / "base")
        self.experts = {
            f"task-{number}": CheckpointSource(folder / f"expert-{number}")
            for number in range(experts)
        }

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live tower."""
        return build_model(
            lambda: CLIPVisionModel(config()),
            weights,
            rename=lambda name: name.removeprefix(_PREFIX),
            dtype=dtype,
            device=device,
        )

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map stored names to live parameters."""
        stored = {name.removeprefix(_PREFIX): name for name in self.base.infos}
        return {stored[name]: parameter for name, parameter in module.named_parameters()}


class RandomTask(FeatureTask):
    """The same random images in every step."""

    def __init__(self, number: int) -> None:
        self.name = f"task-{number}"
        self.weight = head_of(number)
        self._number = number
        self._images: Tensor | None = None

    def batch(self, _step: int, *, size: int, **_: Any) -> Batch:  # noqa: ANN401 - of no effect
        """Return the images."""
        if self._images is None:
            self._images = batch_of(self._number, size)
        return Batch(self._images)

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the pooled output."""
        pooled: Tensor = model(inputs).pooler_output
        return pooled

    def head(self, features: Tensor) -> Tensor:
        """Return scores of 100 classes."""
        return features @ self.weight

    def evaluate(self, _model: nn.Module) -> dict[str, float]:
        """Raise: random images cannot be evaluated."""
        raise NotImplementedError


class RandomTasks(TaskPool[ComponentConfig]):
    """One task per expert."""

    def __init__(self, count: int) -> None:
        super().__init__(ComponentConfig())
        self.names = [f"task-{number}" for number in range(count)]

    def __getitem__(self, name: str) -> RandomTask:
        """Return a task by its name."""
        return RandomTask(list(self.names).index(name))
