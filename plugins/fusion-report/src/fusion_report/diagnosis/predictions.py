"""What models predict of unlabeled examples: how sure they are, and whether experts agree.

Experts are the measure: of each task, its own expert's prediction counts as right. That needs no
labels, and any task with unlabeled examples will do.
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

#: Places on a line between two models, both ends included.
_PLACES = 5


@dataclass
class Asked:
    """The first unlabeled examples of tasks, and what their experts say of them, asked once."""

    pool: ModelPool[Any]
    #: each with an expert of its own in the pool
    tasks: Sequence[AdaptiveTask]
    samples: int
    device: torch.device
    _experts: dict[str, Tensor] = field(default_factory=dict)

    def experts(self) -> dict[str, Answers]:
        """Return what experts say of their own tasks."""
        return {
            task.name: Answers(float(entropy(self._expert(task).double())), 1.0)
            for task in self.tasks
        }

    def of(self, weights: WeightSource, tasks: Sequence[str] = ()) -> dict[str, Answers]:
        """Return what a model says, of all tasks or of some."""
        model = build_live(self.pool, weights, self.device)
        found = {}
        for task in self.tasks:
            if not tasks or task.name in tasks:
                found[task.name] = _answers(self._predicted(model, task), self._expert(task))
                note(task.name)
        return found

    def _expert(self, task: AdaptiveTask) -> Tensor:
        if task.name not in self._experts:
            expert = build_live(self.pool, self.pool.expert_of(task.name), self.device)
            self._experts[task.name] = self._predicted(expert, task)
        return self._experts[task.name]

    def _predicted(self, model: nn.Module, task: AdaptiveTask) -> Tensor:
        try:
            return predict_unlabeled(model, task, self.samples, self.device)
        except RecipeError as error:  # too few examples, as a rule
            hint = "Ask for fewer by --samples, or for none by --no-tasks."
            raise RecipeError(error.message, hint=hint) from error


def _answers(logits: Tensor, expert: Tensor) -> Answers:
    agrees = (logits.argmax(-1) == expert.argmax(-1)).double()
    return Answers(float(entropy(logits.double())), float(agrees.mean()))


def paths(asked: Asked, progress: Progress) -> Iterator[Path]:
    """Yield the lines from the base to every expert, and between every two experts.

    An expert's line is asked on its own task, that of two experts on both their tasks.
    """
    pool = asked.pool
    known = {task.name for task in asked.tasks}
    tasks = {name: pool.task_of(name) for name in pool.experts if pool.task_of(name) in known}
    ends = [("base", name) for name in tasks if pool.base is not None]
    ends += combinations(tasks, 2)
    with progress.track("ask along lines", total=len(ends)) as advance:
        for one, other in ends:
            own = dict.fromkeys(tasks[name] for name in (one, other) if name in tasks)
            yield _path(asked, (one, other), list(own))
            advance(1, note=f"{one} - {other}")


def _path(asked: Asked, ends: tuple[str, str], tasks: Sequence[str]) -> Path:
    places = [step / (_PLACES - 1) for step in range(_PLACES)]
    answers = [asked.of(_between(asked.pool, ends, place), tasks) for place in places]
    return Path(ends, tasks, [mean(each.agreement for each in row.values()) for row in answers])


def _between(pool: ModelPool[Any], ends: tuple[str, str], place: float) -> WeightSource:
    """Return the model at a place from 0 to 1 on the line between two."""
    shares = dict(zip(ends, (1 - place, place), strict=True))
    experts = {name: pool.experts[name] for name in ends if name in pool.experts}
    factors = tuple(shares[name] for name in experts)
    kernel = Linear(factors, relative=pool.base is not None)
    return MergedSource(kernel, Operands(pool.base, experts))
