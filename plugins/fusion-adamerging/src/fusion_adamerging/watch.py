"""Notices a search that goes wrong, and keeps the last coefficients that were still good."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

#: Merging coefficients of this size are no merge any more: task arithmetic's best is near 0.3.
LARGEST = 10.0
#: So many predictions in a row that are all of one class make a collapse.
IN_A_ROW = 64


@dataclass(frozen=True)
class Seen:
    """What one step showed of one task."""

    #: the mean over the batch of what is minimised, in nats
    objective: float
    examples: int
    #: the class of every prediction; None where they differ
    only_class: int | None


class SearchStoppedError(FusionError):
    """The search must not go on; the run rescues the last good coefficients."""


@dataclass
class Watch:
    """What is remembered from step to step; `state` and `recall` carry it over a resume."""

    #: by task: the class that every recent prediction had, and how many there were
    runs: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: tasks that have had predictions of more than one class
    varied: set[str] = field(default_factory=set)

    def look(self, step: int, seen: Mapping[str, Seen]) -> bool:
        """Return whether the coefficients that gave this are good.

        Raises `SearchStoppedError` naming what is wrong: an objective that is no number, or a task
        whose predictions have fallen into one class.
        """
        for task, each in seen.items():
            if not math.isfinite(each.objective):
                raise SearchStoppedError(
                    f"adamerging diverged at step {step}: task {task!r} has an objective of "
                    f"{each.objective}",
                    hint="Use a smaller algorithm.lr.",
                )
            self._follow(step, task, each)
        return not self.runs

    def _follow(self, step: int, task: str, seen: Seen) -> None:
        if seen.only_class is None:
            self.varied.add(task)
            self.runs.pop(task, None)
            return
        if task not in self.varied:  # it may well have one class only
            return
        before, count = self.runs.get(task, (seen.only_class, 0))
        count = seen.examples + (count if before == seen.only_class else 0)
        self.runs[task] = (seen.only_class, count)
        if count >= IN_A_ROW:
            raise SearchStoppedError(
                f"adamerging collapsed: at step {step} the last {count} predictions of task "
                f"{task!r} are all of class {seen.only_class}",
                hint="Use a smaller algorithm.lr, fewer algorithm.steps, or objective: teacher.",
            )

    def state(self) -> dict[str, Any]:
        """Return what to remember, as JSON."""
        return {"runs": self.runs, "varied": sorted(self.varied)}

    @classmethod
    def recall(cls, state: Mapping[str, Any]) -> Watch:
        """Go on from `state`."""
        runs = {task: (int(run[0]), int(run[1])) for task, run in state["runs"].items()}
        return cls(runs, set(state["varied"]))


def check_size(step: int, coefficients: Tensor) -> None:
    """Raise `SearchStoppedError` where coefficients are no numbers, or out of all proportion."""
    largest = float(coefficients.abs().max())
    if not largest <= LARGEST:  # NaN is not, either
        raise SearchStoppedError(
            f"adamerging diverged at step {step}: a coefficient has become {largest:g}",
            hint="Use a smaller algorithm.lr.",
        )
