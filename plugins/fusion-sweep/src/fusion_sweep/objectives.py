"""Objectives: numbers of a report to choose by, over all tasks, the worst task, or one task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core import Metric
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import Report

#: The objectives that need no labels, as metrics of every task.
WITHOUT_LABELS = {
    "entropy": Metric("entropy", unit="nats", higher_is_better=False),
    "agreement": Metric("agreement"),
}
_WITH_LABELS = ("average", "normalised", "worst")


@dataclass(frozen=True)
class Objective:
    """One number of a report: `average`, `normalised`, `worst`, `entropy`, `agreement`, or a task.

    `normalised` is the mean of the scores relative to the experts' scores: infinite if a task has
    zero errors, NaN if it has a negative score. `worst` is the main metric of the worst task.
    `entropy` and `agreement` are means over the tasks.
    """

    name: str

    @property
    def needs_labels(self) -> bool:
        """Whether its measurement needs labels."""
        return self.name not in WITHOUT_LABELS

    def is_in(self, report: Report) -> bool:
        """Tell whether a report has the numbers that the objective needs."""
        if self.name in WITHOUT_LABELS:
            return all(self.name in metrics for metrics in report.tasks.values())
        return self.name in {*_WITH_LABELS, *report.tasks}

    def value(self, report: Report) -> float:
        """Return the number; raises `RecipeError` if it is undefined for the report."""
        match self.name:
            case "average":
                return self._check_defined(report.average)
            case "normalised":
                return self._normalised(report)
            case "worst":
                self._check_defined(report.average)
                values = [next(iter(metrics.values())) for metrics in report.tasks.values()]
                if any(map(math.isnan, values)):
                    return math.nan
                return min(values) if self.metric(report).higher_is_better else max(values)
            case "entropy" | "agreement":
                values = [metrics[self.name] for metrics in report.tasks.values()]
                return sum(values) / len(values)
            case task:
                return next(iter(report.tasks[task].values()))

    def metric(self, report: Report) -> Metric:
        """Return the objective's unit and direction."""
        if self.name in WITHOUT_LABELS:
            return WITHOUT_LABELS[self.name]
        if self.name == "normalised":
            return Metric("normalised average")
        main_metrics = report.main_metrics
        return main_metrics.get(self.name) or next(iter(main_metrics.values()))

    def score(self, report: Report) -> float:
        """Return the number, negated if lower is better; NaN scores lowest."""
        value = self.value(report)
        if math.isnan(value):
            return -math.inf
        return value if self.metric(report).higher_is_better else -value

    def _normalised(self, report: Report) -> float:
        if below := [expert.task for expert in report.experts_below_base]:
            raise RecipeError(
                f"objective 'normalised': the expert scores below the base on {', '.join(below)}",
                hint="Experts and tasks may be mismatched. Check which expert belongs to "
                "which task, the order of the labels, and the heads.",
            )
        if report.normalised_average is None and _has_ratios(report):
            # The score of a task has no ratio: it is NaN, negative, or zero, where lower is better.
            scores = [next(iter(metrics.values())) for metrics in report.tasks.values()]
            return math.inf if all(score >= 0 for score in scores) else math.nan
        return self._check_defined(report.normalised_average)

    def _check_defined(self, value: float | None) -> float:
        if value is None:
            hint = "Their units differ. Choose by normalised, or by one task: --objective TASK"
            if self.name == "normalised":
                hint = "A task has no expert to compare with. Choose by one task: --objective TASK"
            raise RecipeError(f"objective {self.name!r} is undefined for these tasks", hint=hint)
        return value


def _has_ratios(report: Report) -> bool:
    """Tell whether every task has an expert that scores can be divided by."""
    experts, metrics = report.reference.experts, report.main_metrics
    values = {task: next(iter(row.values())) for task, row in experts.items()}
    return all(
        task in values and metric.ratio(values[task], values[task]) is not None
        for task, metric in metrics.items()
    )


def parse_objectives(names: Sequence[str], tasks: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives of these names; raises `RecipeError` for unknown and mixed ones."""
    known = [*_WITH_LABELS, *WITHOUT_LABELS, *tasks]
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(
            f"unknown objective {unknown[0]!r}", hint=f"Known objectives: {', '.join(known)}."
        )
    objectives = tuple(map(Objective, dict.fromkeys(names)))
    if len({objective.needs_labels for objective in objectives}) > 1:
        raise RecipeError(
            "conflicting objectives: some need labels and some do not, and they are measured on "
            "different examples",
            hint="Give objectives of one kind.",
        )
    return objectives
