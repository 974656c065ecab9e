"""Measure predictions on unlabeled examples: entropy, and agreement with the experts.

The prediction of a task's own expert counts as right, so no labels are needed. Any task with
unlabeled examples can be used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from fusion_adapting import build_live, entropy, predict_unlabeled
from fusion_core import note
from fusion_core.errors import RecipeError
from fusion_core.weights import Linear, MergedSource, Operands
from fusion_report.diagnosis.figures import Answers, Path, mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, ModelPool, Progress, WeightSource

#: Number of models on a line between two models, including both ends.
_POINTS = 5


@dataclass
class Survey:
    """The first unlabeled examples of tasks, on which models are compared with the experts."""

    pool: ModelPool[Any]
    #: tasks with an expert in the pool
    tasks: Sequence[AdaptiveTask]
    samples: int
    device: torch.device
    #: logits of each task's expert, computed once
    _expert_logits: dict[str, Tensor] = field(default_factory=dict)

    def measure_experts(self) -> dict[str, Answers]:
        """Return the answers of every expert on its own task."""
        return {
            task.name: Answers(float(entropy(self._predict_expert(task).double())), 1.0)
            for task in self.tasks
        }

    def measure(self, weights: WeightSource, tasks: Sequence[str] = ()) -> dict[str, Answers]:
        """Return the answers of a model on all tasks, or on the given ones."""
        model = build_live(self.pool, weights, self.device)
        answers = {}
        for task in self.tasks:
            if tasks and task.name not in tasks:
                continue
            logits, expert = self._predict(model, task), self._predict_expert(task)
            agrees = (logits.argmax(-1) == expert.argmax(-1)).double()
            answers[task.name] = Answers(float(entropy(logits.double())), float(agrees.mean()))
            note(task.name)
        return answers

    def measure_paths(self, progress: Progress) -> Iterator[Path]:
        """Yield the lines from the base to every expert, and between every two experts.

        A line is measured on the tasks of the experts at its ends.
        """
        known = {task.name for task in self.tasks}
        tasks = {name: self.pool.task_of(name) for name in self.pool.experts}
        tasks = {name: task for name, task in tasks.items() if task in known}
        ends = [("base", name) for name in tasks if self.pool.base is not None]
        ends += combinations(tasks, 2)
        with progress.track("measure lines", total=len(ends)) as advance:
            for one, other in ends:
                names = dict.fromkeys(tasks[name] for name in (one, other) if name in tasks)
                yield self._measure_path((one, other), list(names))
                advance(1, note=f"{one} - {other}")

    def _measure_path(self, ends: tuple[str, str], tasks: Sequence[str]) -> Path:
        agreement = []
        for step in range(_POINTS):
            weights = _interpolate(self.pool, ends, step / (_POINTS - 1))
            answers = self.measure(weights, tasks)
            agreement.append(mean(answer.agreement for answer in answers.values()))
        return Path(ends, tasks, agreement)

    def _predict_expert(self, task: AdaptiveTask) -> Tensor:
        if task.name not in self._expert_logits:
            expert = build_live(self.pool, self.pool.expert_of(task.name), self.device)
            self._expert_logits[task.name] = self._predict(expert, task)
        return self._expert_logits[task.name]

    def _predict(self, model: nn.Module, task: AdaptiveTask) -> Tensor:
        try:
            return predict_unlabeled(model, task, self.samples, self.device)
        except RecipeError as error:  # too few examples, or none
            hint = "Use fewer examples with --samples, or none with --no-tasks."
            raise RecipeError(error.message, hint=hint) from error


def _interpolate(pool: ModelPool[Any], ends: tuple[str, str], fraction: float) -> WeightSource:
    """Return the model at a fraction, from 0 to 1, of the line between two models."""
    shares = dict(zip(ends, (1 - fraction, fraction), strict=True))
    experts = {name: pool.experts[name] for name in ends if name in pool.experts}
    factors = tuple(shares[name] for name in experts)
    kernel = Linear(factors, relative=pool.base is not None)
    return MergedSource(kernel, Operands(pool.base, experts))
