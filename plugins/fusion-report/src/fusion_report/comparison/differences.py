"""Two reports on the same test examples: whether one model is better, by task and on average.

McNemar's exact test compares right and wrong answers: of the examples that only one model gets
right, each is as likely to be the one's as the other's. A paired bootstrap of the differences
compares everything else. No p-value is corrected for many tasks.
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

    #: differences by example, and how much each example counts
    Outcomes = tuple[Sequence[float], Sequence[float] | None]

MCNEMAR, BOOTSTRAP = "exact McNemar", "paired bootstrap"
_SMALLEST_P = 0.001  # that is printed with three decimals


@dataclass(frozen=True)
class Difference:
    """How much better or worse the second model is than the first, on a task or on average."""

    label: str
    metric: Metric
    #: second - first, in the metric's unit
    value: float
    #: its 95 % interval
    interval: tuple[float, float] | None
    #: how likely so large a difference is among models that are equally good
    p: float
    test: str
    is_task: bool = True

    @property
    def cells(self) -> list[str]:
        """Return the cells of a table's row: name, difference, interval, p."""
        ends = [self._signed(end) for end in self.interval or ()]
        p = "<0.001" if self.p < _SMALLEST_P else f"{self.p:.3f}"
        return [self.label, self._signed(self.value), " to ".join(ends), p]

    def _signed(self, value: float) -> str:
        return f"{'+' if value > 0 else ''}{self.metric.shown(value)}"

    def as_json(self) -> dict[str, Any]:
        """Return the difference as JSON's data."""
        low, high = self.interval or (None, None)
        return {"difference": self.value, "low": low, "high": high, "p": self.p, "test": self.test}


def compare_reports(first: Report, second: Report) -> list[Difference]:
    """Compare reports on the tasks whose examples both keep, and on their average.

    Examples are the same where there are as many, each with the same weight.
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
    """Return the two-sided p-value of so many examples that only one model has right."""
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
