"""Metrics without labels: a merge's entropy, and its agreement with the experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import build_live, entropy, predict_unlabeled
from fusion_core import Report, note
from fusion_sweep.objectives import WITHOUT_LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, ModelPool, TaskPool, WeightSource


@dataclass
class UnlabeledMetrics:
    """Measures merges on the first unlabeled examples of every task; asks each expert once."""

    pool: ModelPool[Any]
    tasks: TaskPool[Any]
    device: torch.device
    #: examples per task; all if it has fewer
    samples: int
    #: names in `WITHOUT_LABELS`
    metrics: Sequence[str]
    _expert_classes: dict[str, Tensor] = field(default_factory=dict)

    def report(self, merged: WeightSource) -> Report:
        """Measure a merge on every task; raises `RecipeError` for tasks without such examples."""
        model = build_live(self.pool, merged, self.device)
        tasks = [self.tasks.adaptive(name).with_all_predictions() for name in self.tasks.names]
        rows = {task.name: self._measure(model, task) for task in tasks}
        metrics = {name: WITHOUT_LABELS[name] for name in self.metrics}
        measured_on = f"up to {self.samples} unlabeled examples of each task"
        return Report(rows, measured_on=measured_on, metrics=dict.fromkeys(rows, metrics))

    def _measure(self, model: nn.Module, task: AdaptiveTask) -> dict[str, float]:
        classes, entropies = self._predict(model, task).unbind(dim=1)
        values: dict[str, float] = {}
        for name in self.metrics:
            if name == "entropy":
                values[name] = float(entropies.mean())
            else:
                agrees = classes == self._predict_by_expert(task)
                values[name] = float(agrees.double().mean())
        note(task.name)
        return values

    def _predict_by_expert(self, task: AdaptiveTask) -> Tensor:
        if task.name not in self._expert_classes:
            expert = build_live(self.pool, self.pool.expert_of(task.name), self.device)
            self._expert_classes[task.name] = self._predict(expert, task)[:, 0]
        return self._expert_classes[task.name]

    def _predict(self, model: nn.Module, task: AdaptiveTask) -> Tensor:
        """Return the class of each prediction and its batch's entropy, (predictions, 2) in fp64."""
        return predict_unlabeled(model, task, self.samples, self.device, reduce=self._reduce)

    def _reduce(self, logits: Tensor) -> Tensor:
        classes = logits.argmax(-1).double()
        is_asked = "entropy" in self.metrics  # takes twice the memory of the logits
        mean = entropy(logits.double()) if is_asked else classes.new_zeros(())
        return torch.stack([classes, mean.expand_as(classes)], dim=1)
