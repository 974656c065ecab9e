"""How pools are written and runs are made: checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

from fusion_core import (
    Batch,
    ComponentConfig,
    FeatureTask,
    ModelPool,
    Report,
    RunResult,
    Split,
    Task,
    TaskPool,
    WeightSource,
    build_model,
    run_fusion,
)
from fusion_core.commands import Subject, load_recipe
from fusion_core.weights import CheckpointSource
from fusion_testing import AlgorithmSuite, TinyTasks, tiny_pool


class FilesConfig(ComponentConfig):
    """Options."""

    base: str
    """A checkpoint."""


class Files(ModelPool[FilesConfig]):
    """A pool of one file."""

    config_class = FilesConfig

    def __init__(self, config: FilesConfig) -> None:
        super().__init__(config)
        self.base = CheckpointSource(self.config.base)
        self.experts = {"only": self.base}

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model."""
        assert_type(weights.state_dict(), dict[str, Tensor])
        model = build_model(lambda: nn.Linear(1, 1), weights, dtype=dtype, device=device)
        assert_type(model, nn.Linear)
        return model


class Zeros(FeatureTask):
    """A task of nothing."""

    name = "zeros"

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Return zeros."""
        del step, seed
        labels = None if split is Split.UNLABELED else torch.zeros(size, dtype=torch.int64)
        return Batch(torch.zeros(size, 1), labels)

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return what the model makes."""
        outputs: Tensor = model(inputs)
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """Return scores."""
        return features

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return a fraction."""
        del model
        return {"accuracy": 1.0}


class ZerosPool(TaskPool[ComponentConfig]):
    """A pool of one task."""

    config_class = ComponentConfig
    names = ("zeros",)

    def __getitem__(self, name: str) -> Task:
        """Return it."""
        assert_type(self.measure(Subject.of(nn.Identity())), dict[str, Mapping[str, float]])
        return Zeros()


def runs() -> None:
    """Names, mappings and objects are all recipes."""
    result = run_fusion(algorithm="ties", model_pool="mini8", seed=1)
    assert_type(result, RunResult)
    assert_type(result.report, Report | None)
    run_fusion(load_recipe(Path("recipe.yaml")), output={"path": "out"})
    run_fusion(
        algorithm={"name": "ties"}, model_pool=Files(FilesConfig(base="x")), task_pool=TinyTasks()
    )
    run_fusion("recipe.yaml", output=None)
    run_fusion(seed="one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


assert_type(tiny_pool("mlp").base, WeightSource | None)
assert_type(AlgorithmSuite.expected_failures, Mapping[str, str])
