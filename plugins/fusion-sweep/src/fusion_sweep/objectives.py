"""What is searched for, as a number of a report: of all tasks, the worst, or one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core import Metric
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core import Report

#: What needs no labels, as metrics of every task.
WITHOUT_LABELS = {
    "entropy": Metric("entropy", unit="nats", higher_is_better=False),
    "agreement": Metric("agreement"),
}
_OF_LABELS = ("average", "normalised", "worst")


@dataclass(frozen=True)
class Objective:
    """One number of a report: `average`, `normalised`, `worst`, `entropy`, `agreement`, or a task.

    `normalised` is the mean share of the experts' own figures, `worst` the task with the worst main
    metric, `entropy` and `agreement` are means over the tasks.
    """

    name: str

    @property
    def needs_labels(self) -> bool:
        """Whether it is of what tasks measure by labels."""
        return self.name not in WITHOUT_LABELS

    def is_in(self, report: Report) -> bool:
        """Tell whether a report has the figures that the number is made of."""
        if self.name in WITHOUT_LABELS:
            return all(self.name in figures for figures in report.tasks.values())
        return self.name in {*_OF_LABELS, *report.tasks}

    def value(self, report: Report) -> float:
        """Return the number; raises `RecipeError` for a report that does not have it."""
        match self.name:
            case "average":
                return self._there(report.average)
            case "normalised":
                return self._normalised(report)
            case "worst":
                self._there(report.average)
                values = list(_mains(report))
                return min(values) if self.metric(report).higher_is_better else max(values)
            case "entropy" | "agreement":
                rows = [each[self.name] for each in report.tasks.values()]
                return sum(rows) / len(rows)
            case task:
                return next(iter(report.tasks[task].values()))

    def metric(self, report: Report) -> Metric:
        """Return what is known of the number: its unit, and whether higher is better."""
        if self.name in WITHOUT_LABELS:
            return WITHOUT_LABELS[self.name]
        if self.name == "normalised":
            return Metric("normalised average")
        mains = report.main_metrics
        return mains[self.name] if self.name in mains else next(iter(mains.values()))

    def score(self, report: Report) -> float:
        """Return the number, or its negative where lower is better; what is none is the worst."""
        value = self.value(report)
        if math.isnan(value):
            return -math.inf
        return value if self.metric(report).higher_is_better else -value

    def _normalised(self, report: Report) -> float:
        if below := [expert.task for expert in report.experts_below_base]:
            raise RecipeError(
                f"objective {self.name!r}: the expert scores below the base on {', '.join(below)}",
                hint="Experts and tasks probably do not belong together: check which expert is for "
                "which task, the order of the labels, and the heads.",
            )
        return self._there(report.normalised_average)

    def _there(self, value: float | None) -> float:
        if value is None:
            raise RecipeError(
                f"objective {self.name!r}: these tasks have none",
                hint="Their units differ, or experts are missing: name a task as the objective.",
            )
        return value


def objectives_of(names: Sequence[str], tasks: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives of these names; raises `RecipeError` for unknown and mixed ones."""
    known = [*_OF_LABELS, *WITHOUT_LABELS, *tasks]
    if unknown := [name for name in names if name not in known]:
        hint = f"There are: {', '.join(known)}."
        raise RecipeError(f"there is no objective {unknown[0]!r}", hint=hint)
    found = tuple(map(Objective, dict.fromkeys(names)))
    if len({each.needs_labels for each in found}) > 1:
        raise RecipeError(
            "objectives with and without labels are measured on other examples",
            hint="Choose by one kind.",
        )
    return found


def _mains(report: Report) -> Iterator[float]:
    return (next(iter(metrics.values())) for metrics in report.tasks.values())
