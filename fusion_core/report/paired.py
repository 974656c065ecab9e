"""Two models on the same test examples: whether one is better, or the examples were kind to it.

What is right or wrong is tested by McNemar's exact test: of the examples that only one model has
right, each is as likely to be the one's as the other's. Anything else, and the average over tasks,
by a paired bootstrap of the differences. Values for one task each: nothing is corrected for many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.intervals import of_same_examples, percentiles, resample
from fusion_core.contracts.layout import AVERAGE, are_alike, shared_lines
from fusion_core.contracts.measures import Measured, Metric, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.contracts.intervals import Interval
    from fusion_core.contracts.report import Report

    #: differences by example, and how much each counts
    Differences = tuple[Sequence[float], Sequence[float] | None]

MCNEMAR, BOOTSTRAP = "exact McNemar", "paired bootstrap"


@dataclass(frozen=True)
class Difference:
    """How much better or worse the second model is than the first, on a task or on average."""

    label: str
    metric: Metric
    #: second - first, in the metric's unit
    value: float
    interval: Interval | None
    #: how likely so large a difference is among models that are equally good
    p: float
    test: str
    is_task: bool = True

    @property
    def cells(self) -> list[str]:
        """Return it for people: name, difference, interval, p."""
        ends = [self._signed(each) for each in self.interval or ()]
        p = "<0.001" if self.p < 0.001 else f"{self.p:.3f}"  # noqa: PLR2004 - as many digits
        return [self.label, self._signed(self.value), " to ".join(ends), p]

    def _signed(self, value: float) -> str:
        return f"{'+' if value > 0 else ''}{self.metric.shown(value)}"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's data."""
        low, high = self.interval or (None, None)
        return {"difference": self.value, "low": low, "high": high, "p": self.p, "test": self.test}


def differences(first: Report, second: Report) -> list[Difference]:
    """Compare reports on the tasks whose examples both keep, and on their average.

    Examples are the same where there are as many, each with the same weight.
    """
    found: dict[tuple[str, Metric], Differences] = {}
    compared = []
    for task, metric in shared_lines({"first": first, "second": second}):
        pair = first.tasks[task], second.tasks[task]
        if first.measured_on == second.measured_on and (each := _paired(*pair)) is not None:
            found[task, metric] = each
            compared.append(_on_task(task, metric, each, *pair))
    return [*compared, *_on_average(found)]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of so many examples that only one model has right."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # binomial coefficients, each from the one before: there may be thousands
    for each in range(fewer):
        term = term * (count - each) // (each + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << count))


def _paired(first: Mapping[str, float], second: Mapping[str, float]) -> Differences | None:
    """Return each example's difference; None where these are not the same examples."""
    if not (of_same_examples(first, second) and isinstance(second, Measured)):
        return None
    pairs = zip(first.outcomes, second.outcomes, strict=True)
    return [after - before for before, after in pairs], first.weights


def _on_task(
    task: str,
    metric: Metric,
    each: Differences,
    first: Mapping[str, float],
    second: Mapping[str, float],
) -> Difference:
    found = _bootstrapped(task, metric, [each])
    both = isinstance(first, Measured) and first.is_binary
    if not both or not (isinstance(second, Measured) and second.is_binary):
        return found
    p = mcnemar(each[0].count(-1.0), each[0].count(1.0))
    return replace(found, p=p, test=MCNEMAR)


def _on_average(found: Mapping[tuple[str, Metric], Differences]) -> Iterator[Difference]:
    lines = list(found)
    if len(lines) > 1 and are_alike(lines):
        average = _bootstrapped(AVERAGE, lines[0][1], list(found.values()))
        yield replace(average, is_task=False)


def _bootstrapped(label: str, metric: Metric, tasks: Sequence[Differences]) -> Difference:
    """Resample pairs within each task; p is twice the share of means on the other side of 0."""
    value = sum(weighted_mean(*each) for each in tasks) / len(tasks)
    means = resample(tasks)
    sides = int((means <= 0).sum()), int((means >= 0).sum())
    p = min(1.0, 2 * (min(sides) + 1) / (len(means) + 1))
    return Difference(label, metric, value, percentiles(means), p, BOOTSTRAP)
