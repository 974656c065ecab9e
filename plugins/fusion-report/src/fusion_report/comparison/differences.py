"""Test whether one of two models is better on the same test examples, per task and on average.

Right and wrong answers are compared by McNemar's exact test. Its null hypothesis: an example that
only one model gets right is equally likely to be either model's. All other scores are compared by a
paired bootstrap of the differences. No p-value is corrected for multiple tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from fusion_core import Measured
from fusion_core.commands import build_table, paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import Metric, Report

    #: differences per example, and weights of the examples
    Outcomes = tuple[Sequence[float], Sequence[float] | None]

MCNEMAR, BOOTSTRAP = "exact McNemar", "paired bootstrap"
_SMALLEST_P = 0.001  # smallest value with three decimals


@dataclass(frozen=True)
class Difference:
    """The difference between two models on a task or on average."""

    label: str
    metric: Metric
    #: second - first, in the metric's unit
    value: float
    #: 95 % interval of the difference
    interval: tuple[float, float] | None
    #: probability of a difference of at least this size between equally good models
    p: float
    test: str
    is_task: bool = True

    @property
    def cells(self) -> list[str]:
        """The cells of a table row: name, difference, interval and p."""
        ends = [self._signed(end) for end in self.interval or ()]
        p = "<0.001" if self.p < _SMALLEST_P else f"{self.p:.3f}"
        return [self.label, self._signed(self.value), " to ".join(ends), p]

    def _signed(self, value: float) -> str:
        return f"{'+' if value > 0 else ''}{self.metric.shown(value)}"

    def as_json(self) -> dict[str, Any]:
        """Return the difference as JSON data."""
        low, high = self.interval or (None, None)
        return {"difference": self.value, "low": low, "high": high, "p": self.p, "test": self.test}


def compare_reports(first: Report, second: Report) -> list[Difference]:
    """Compare reports on the tasks for which both store outcomes, and on their average.

    Examples count as the same if their number and weights agree.
    """
    if first.measured_on != second.measured_on:
        return []
    outcomes: dict[str, Outcomes] = {}
    differences = []
    for task in build_table({"first": first, "second": second}).shared:
        before, after = first.tasks[task], second.tasks[task]
        if isinstance(before, Measured) and before.pairs_with(after):
            outcomes[task] = before.differences(after), before.weights
            metric = first.main_metrics[task]
            differences.append(_compare_task(task, metric, before, after))
    metrics = [first.main_metrics[task] for task in outcomes]
    if len(metrics) > 1 and all(metric.agrees(metrics[0]) for metric in metrics):
        value = sum(map(_mean, outcomes.values())) / len(outcomes)
        interval, p = paired_bootstrap([*outcomes.values()])
        average = Difference("average", metrics[0], value, interval, p, BOOTSTRAP, is_task=False)
        differences.append(average)
    return differences


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value; the arguments count examples that only one model gets right."""
    count = only_first + only_second
    return float(stats.binomtest(only_first, count).pvalue) if count else 1.0


def _compare_task(task: str, metric: Metric, first: Measured, second: Measured) -> Difference:
    differences = first.differences(second)
    outcomes = differences, first.weights
    interval, p = paired_bootstrap([outcomes])
    test = BOOTSTRAP
    if first.is_binary and second.is_binary:
        p, test = mcnemar(differences.count(-1.0), differences.count(1.0)), MCNEMAR
    return Difference(task, metric, _mean(outcomes), interval, p, test)


def _mean(outcomes: Outcomes) -> float:
    values, weights = outcomes
    return float(np.average(values, weights=weights))
