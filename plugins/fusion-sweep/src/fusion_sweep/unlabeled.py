"""What is measured without labels: how sure a merge is, and how often it says what experts say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_adapting import build_live, entropy, predict_unlabeled
from fusion_core import Report, note
from fusion_sweep.objectives import WITHOUT_LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, ModelPool, TaskPool, WeightSource


@dataclass
class Unlabeled:
    """The first unlabeled examples of every task, and what experts say of them, asked once."""

    pool: ModelPool[Any]
    tasks: TaskPool[Any]
    device: torch.device
    #: examples of a task, in whole batches
    samples: int
    #: which of `WITHOUT_LABELS`
    asked: Sequence[str]
    _experts: dict[str, Tensor] = field(default_factory=dict)

    def report(self, merged: WeightSource) -> Report:
        """Measure a merge on every task; raises `RecipeError` for tasks without such examples."""
        model = build_live(self.pool, merged, self.device)
        rows = {name: self._row(model, self.tasks.adaptive(name)) for name in self.tasks.names}
        declared = {name: WITHOUT_LABELS[name] for name in self.asked}
        said = f"up to {self.samples} unlabeled examples of each task"
        return Report(rows, measured_on=said, metrics=dict.fromkeys(rows, declared))

    def _row(self, model: nn.Module, task: AdaptiveTask) -> dict[str, float]:
        logits = self._logits(model, task)
        found = {
            "entropy": lambda: float(entropy(logits.double())),
            "agreement": lambda: _share(logits.argmax(-1) == self._expert(task)),
        }
        note(task.name)
        return {name: found[name]() for name in self.asked}

    def _expert(self, task: AdaptiveTask) -> Tensor:
        if task.name not in self._experts:
            expert = build_live(self.pool, self.pool.expert_of(task.name), self.device)
            self._experts[task.name] = self._logits(expert, task).argmax(-1)
        return self._experts[task.name]

    def _logits(self, model: nn.Module, task: AdaptiveTask) -> Tensor:
        return predict_unlabeled(model, task, self.samples, self.device)


def _share(agrees: Tensor) -> float:
    return float(agrees.double().mean())
