"""Notices a search that goes wrong, and keeps the last coefficients that were still good."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting import Outcome

#: Coefficients of this size no longer merge: task arithmetic's best is near 0.3.
LARGEST = 10.0
#: So many predictions in a row that are all of one class make a collapse, or more: as many as a
#: task where that class was common before gives by chance once in a million times.
IN_A_ROW, CHANCE = 64, 1e-6


@dataclass(frozen=True)
class Seen:
    """What one step showed of one task."""

    #: the mean over the batch of what is minimised, in nats
    objective: float
    #: how many predictions were of each class
    classes: Mapping[int, int]

    @classmethod
    def of(cls, outcome: Outcome) -> Seen:
        """Count what the logits of one task's pass predict."""
        predicted = outcome.logits.argmax(dim=-1).reshape(-1).tolist()
        return cls(outcome.objective, Counter(predicted))

    @property
    def examples(self) -> int:
        """How many there were."""
        return sum(self.classes.values())

    @property
    def only_class(self) -> int | None:
        """The class of every prediction; None where they differ."""
        return next(iter(self.classes)) if len(self.classes) == 1 else None


class SearchStoppedError(FusionError):
    """The search must not go on; the run rescues the last good coefficients."""


@dataclass
class Watch:
    """What is remembered from step to step; `state` and `recall` carry it over a resume."""

    #: by task: the class that every recent prediction had, and how many there were
    runs: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: by task: how often each class was predicted before that
    past: dict[str, Counter[int]] = field(default_factory=dict)

    def look(self, step: int, seen: Mapping[str, Seen], *, taught: bool = False) -> bool:
        """Return whether the coefficients that gave this are good.

        Raises `SearchStoppedError` naming what is wrong: an objective that is not a number, or a
        task whose predictions have fallen into one class. That is not wrong of what is `taught`: a
        teacher may say one class of everything.
        """
        for task, each in seen.items():
            if not math.isfinite(each.objective):
                raise SearchStoppedError(
                    f"the search diverged at step {step}: task {task!r} has an objective of "
                    f"{each.objective}",
                    hint="Use a smaller algorithm.lr.",
                )
            if not taught:
                self._follow(step, task, each)
        return not any(4 * count >= self._limit(task) for task, (_, count) in self.runs.items())

    def _follow(self, step: int, task: str, seen: Seen) -> None:
        past = self.past.setdefault(task, Counter())
        only, (before, count) = seen.only_class, self.runs.pop(task, (None, 0))
        if before is not None and before != only:
            past[before] += count
            count = 0
        if only is None:
            past.update(seen.classes)
            return
        count += seen.examples
        self.runs[task] = (only, count)
        if count >= self._limit(task):
            raise SearchStoppedError(
                f"the search collapsed: at step {step} the last {count} predictions of task "
                f"{task!r} are all of class {only}",
                hint="Use a smaller algorithm.lr, fewer algorithm.steps, or objective: teacher.",
            )

    def _limit(self, task: str) -> float:
        """Return how many predictions of the class that a task's latest had make a collapse.

        The rarer it was before, the fewer. None do where there was no other.
        """
        past, (only, _) = self.past[task], self.runs[task]
        if past.keys() <= {only}:
            return math.inf
        share = past[only] / past.total()
        return max(IN_A_ROW, math.log(CHANCE) / math.log(share) if share else 0)

    def state(self) -> dict[str, Any]:
        """Return what to remember, as JSON."""
        past = {task: list(counts.items()) for task, counts in self.past.items()}
        return {"runs": self.runs, "past": past}

    @classmethod
    def recall(cls, state: Mapping[str, Any]) -> Watch:
        """Go on from `state`."""
        runs = {task: (int(run[0]), int(run[1])) for task, run in state["runs"].items()}
        past = {task: Counter(dict(counts)) for task, counts in state["past"].items()}
        return cls(runs, past)


def check_size(step: int, coefficients: Tensor) -> None:
    """Raise `SearchStoppedError` where coefficients are not numbers, or out of all proportion."""
    largest = float(coefficients.abs().max())
    if not largest <= LARGEST:  # NaN is not, either
        raise SearchStoppedError(
            f"the search diverged at step {step}: a coefficient has become {largest:g}",
            hint="Use a smaller algorithm.lr.",
        )
