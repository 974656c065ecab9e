"""Detection of searches that diverge or collapse."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_adapting._passes import Outcome

#: A collapse is at least this many predictions of one class in a row. If the class was common
#: before, it takes more: a run so long that it occurs by chance once in a million times.
IN_A_ROW, CHANCE = 64, 1e-6


@dataclass(frozen=True)
class TaskSummary:
    """The objective and the predicted classes of one task in one step."""

    #: the mean of the objective over the batch, in nats
    objective: float
    #: the number of predictions by class
    classes: Mapping[int, int]

    @classmethod
    def of(cls, outcome: Outcome) -> TaskSummary:
        """Count the predictions of one task's pass by class."""
        predicted = outcome.logits.argmax(dim=-1).reshape(-1).tolist()
        return cls(outcome.objective, Counter(predicted))

    @property
    def examples(self) -> int:
        """The number of predictions."""
        return sum(self.classes.values())

    @property
    def only_class(self) -> int | None:
        """The class of all predictions, or None if they differ."""
        return next(iter(self.classes)) if len(self.classes) == 1 else None


class SearchStoppedError(FusionError):
    """The search diverged or collapsed; `Search.good` holds the last good tensors."""


@dataclass
class SearchMonitor:
    """Checks the predictions of every step; `state` and `from_state` carry it over a resume."""

    #: by task: the class of all recent predictions, and their number
    runs: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: by task: how often each class was predicted before the current run of one class
    past: dict[str, Counter[int]] = field(default_factory=dict)

    def check(
        self, step: int, summaries: Mapping[str, TaskSummary], *, taught: bool = False
    ) -> bool:
        """Return whether the coefficients of this step are good enough to be worth saving.

        Raises `SearchStoppedError` if an objective is not finite, or if the predictions of a task
        have collapsed into one class. If teachers are followed (`taught`), one class for all
        examples is not an error, because a teacher may predict that. In the first step, an
        objective that is not finite is another `FusionError`, because no coefficients are good.
        """
        for task, summary in summaries.items():
            if not math.isfinite(summary.objective):
                raise _not_finite(step, task, summary.objective)
            if not taught:
                self._check_collapse(step, task, summary)
        return not any(4 * count >= self._limit(task) for task, (_, count) in self.runs.items())

    def _check_collapse(self, step: int, task: str, summary: TaskSummary) -> None:
        past = self.past.setdefault(task, Counter())
        only, (before, count) = summary.only_class, self.runs.pop(task, (None, 0))
        if before is not None and before != only:
            past[before] += count
            count = 0
        if only is None:
            past.update(summary.classes)
            return
        count += summary.examples
        self.runs[task] = (only, count)
        if count >= self._limit(task):
            raise SearchStoppedError(
                f"the search collapsed: at step {step} the last {count} predictions of task "
                f"{task!r} are all of class {only}",
                hint="Use a smaller algorithm.lr, fewer algorithm.steps, or objective: teacher.",
            )

    def _limit(self, task: str) -> float:
        """Return how many predictions of a task's current class in a row are a collapse.

        The rarer the class was before, the fewer. If there was no other class, no number is one.
        """
        past, (only, _) = self.past[task], self.runs[task]
        if past.keys() <= {only}:
            return math.inf
        share = past[only] / past.total()
        return max(IN_A_ROW, math.log(CHANCE) / math.log(share) if share else 0)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON."""
        past = {task: list(counts.items()) for task, counts in self.past.items()}
        return {"runs": self.runs, "past": past}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SearchMonitor:
        """Return a monitor that continues from `state`."""
        runs = {task: (int(run[0]), int(run[1])) for task, run in state["runs"].items()}
        past = {task: Counter(dict(counts)) for task, counts in state["past"].items()}
        return cls(runs, past)


def _not_finite(step: int, task: str, objective: float) -> FusionError:
    """Return the error for an objective that is not finite, in the first step or in a later one."""
    if step:
        return SearchStoppedError(
            f"the search diverged at step {step}: the objective of task {task!r} is {objective}",
            hint="Use a smaller algorithm.lr, or check the task's unlabeled examples.",
        )
    return FusionError(
        f"the objective of task {task!r} is {objective} before the first step: the start of the "
        "search or the examples are not finite",
        hint=f"Check the models and the unlabeled examples of task {task!r}. If both are finite, "
        "use a smaller algorithm.init.",
    )
