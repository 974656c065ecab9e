"""A plugin for these tests: methods that log their runs, models in files, tasks with halves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from fusion_core import (
    AdaptiveTask,
    AlgorithmSpec,
    Batch,
    ComponentConfig,
    ExecutorSpec,
    InputPath,
    Metric,
    ModelPool,
    ModelPoolSpec,
    Split,
    TaskPool,
    TaskPoolSpec,
    TensorwiseAlgorithm,
    hookimpl,
)
from fusion_core.errors import FusionError
from fusion_core.weights import CheckpointSource, Piece, sum_in_order
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from fusion_core import MetricValues, WeightSource

SIZE = 32  # examples per half


class ScaledConfig(ComponentConfig):
    scale: float = 0.3
    count: int = Field(default=1, le=10)
    fails_above: float = 9.0
    fails_by: str = "FusionError"


class Scaled(TensorwiseAlgorithm[ScaledConfig]):
    """Base plus scale times the sum of task vectors; each run appends a line to a file."""

    config_class = ScaledConfig

    def run(self, pool: Any, context: Any = None) -> Any:
        if log := os.environ.get("TOYS_LOG"):
            with Path(log).open("a") as file:
                file.write(f"{self.config.scale}\n")
        time.sleep(float(os.environ.get("TOYS_SECONDS", "0")))
        if os.environ.get("TOYS_DEATH") == str(self.config.scale):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TOYS_INTERRUPT") == str(self.config.scale):
            raise KeyboardInterrupt
        if self.config.scale > self.config.fails_above:
            kind = FusionError if self.config.fails_by == "FusionError" else IndexError
            raise kind("it is too large")
        return super().run(pool, context)

    def merge(self, piece: Piece) -> Tensor:
        return sum_in_order(piece.task_vectors).mul_(self.config.scale).add_(piece.base)


class MeanConfig(ComponentConfig):
    pass


class Mean(TensorwiseAlgorithm[MeanConfig]):
    config_class = MeanConfig

    def merge(self, piece: Piece) -> Tensor:
        return sum_in_order(piece.experts) / len(piece.experts)


class ModelsConfig(ComponentConfig):
    folder: InputPath


class Models(ModelPool[ModelsConfig]):
    """The models of `tiny_pool`, from files."""

    config_class = ModelsConfig

    def __init__(self, config: ModelsConfig) -> None:
        super().__init__(config)
        OPENED.append("models")
        source = {
            path.name: CheckpointSource(path) for path in sorted(Path(config.folder).iterdir())
        }
        self.base = source.pop("base")
        self.experts = source

    def build(self, weights: WeightSource, **options: Any) -> nn.Module:
        return tiny_pool().build(weights, **options)


OPENED: list[str] = []


class TasksConfig(ComponentConfig):
    tasks: tuple[str, ...] = ("a", "b", "c")
    halves: bool = True
    loss: bool = False


class Task(AdaptiveTask):
    """A task of `TinyTasks`, restricted to the examples of some steps."""

    def __init__(self, name: str, steps: tuple[int, ...], *, loss: bool) -> None:
        self.name, self.steps, self.loss = name, steps, loss
        self.tiny = TinyTasks()[name]
        self.metrics = [Metric("loss", "nats", higher_is_better=False)] if loss else []

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        return self.tiny.batch(step, size=size, split=split, seed=seed)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.tiny.logits(model, batch)

    def evaluate(self, model: nn.Module) -> MetricValues:
        batches = [self.batch(n, size=SIZE, split=Split.TEST, seed=0) for n in self.steps]
        with torch.no_grad():
            logits = torch.cat([self.logits(model, batch) for batch in batches])
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
        if self.loss:
            return {"loss": float(torch.nn.functional.cross_entropy(logits, labels))}
        return {"accuracy": float((logits.argmax(-1) == labels).double().mean())}


class Tasks(TaskPool[TasksConfig]):
    config_class = TasksConfig

    def __init__(self, config: TasksConfig, steps: tuple[int, ...] = (0, 1)) -> None:
        super().__init__(config)
        OPENED.append("tasks")
        self.names, self.steps = config.tasks, steps
        self._tasks = {name: Task(name, steps, loss=config.loss) for name in config.tasks}

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def identity(self, name: str) -> dict[str, Any]:
        return {"toy": name, "steps": list(self.steps), "loss": self.config.loss}

    def halves(self) -> tuple[Tasks, Tasks]:
        if not self.config.halves:
            return super().halves()
        return Tasks(self.config, (0,)), Tasks(self.config, (1,))


def make_processes(_: ComponentConfig) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


@hookimpl
def fusion_register_executors() -> Iterator[ExecutorSpec]:
    """Register an executor with one process."""
    yield ExecutorSpec(
        name="processes",
        summary="One process.",
        target="toys:make_processes",
        config="fusion_core:ComponentConfig",
    )


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the methods."""
    for name, kind in (("scaled", "Scaled"), ("mean", "Mean")):
        yield AlgorithmSpec(
            name=name, summary="A toy.", target=f"toys:{kind}", config=f"toys:{kind}Config"
        )


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register the models."""
    yield ModelPoolSpec(
        name="toys",
        summary="Toys.",
        target="toys:Models",
        config="toys:ModelsConfig",
        default_task_pool="toys",
    )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register the tasks."""
    yield TaskPoolSpec(name="toys", summary="Toys.", target="toys:Tasks", config="toys:TasksConfig")
