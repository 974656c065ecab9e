"""Two models on the same test examples: the difference of a figure, and how sure it is.

McNemar's exact test compares what is right or wrong: of the examples that only one model gets
right, each is as likely to be the one's as the other's. A paired bootstrap of the differences
compares everything else. Every p-value stands for itself: none is corrected for many tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fusion_core.contracts.intervals import of_same_examples, percentiles, resample
from fusion_core.contracts.measures import Measured, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.intervals import Interval
    from fusion_core.contracts.measures import Metrics

    #: differences by example, and how much each counts
    Differences = tuple[Sequence[float], Sequence[float] | None]

MCNEMAR, BOOTSTRAP = "exact McNemar", "paired bootstrap"


@dataclass(frozen=True)
class Comparison:
    """How far a second model's figure is from a first one's, in the metric's unit."""

    value: float
    interval: Interval | None
    #: how likely so large a difference is among models that are equally good
    p: float
    test: str


def paired_differences(first: Metrics, second: Metrics) -> Differences | None:
    """Return second - first by example; None unless both keep outcomes of the same examples."""
    if not (of_same_examples(first, second) and isinstance(second, Measured)):
        return None
    pairs = zip(first.outcomes, second.outcomes, strict=True)
    return [after - before for before, after in pairs], first.weights


def compare_metrics(first: Metrics, second: Metrics) -> Comparison | None:
    """Compare two models on one task; None unless both keep outcomes of the same examples."""
    differences = paired_differences(first, second)
    if differences is None:
        return None
    comparison = compare_differences([differences])
    are_binary = all(isinstance(row, Measured) and row.is_binary for row in (first, second))
    if not are_binary:
        return comparison
    p = mcnemar(differences[0].count(-1.0), differences[0].count(1.0))
    return replace(comparison, p=p, test=MCNEMAR)


def compare_differences(tasks: Sequence[Differences]) -> Comparison:
    """Resample pairs within each task; p is twice the share of means on the other side of 0."""
    value = sum(weighted_mean(*differences) for differences in tasks) / len(tasks)
    means = resample(tasks)
    sides = int((means <= 0).sum()), int((means >= 0).sum())
    p = min(1.0, 2 * (min(sides) + 1) / (len(means) + 1))
    return Comparison(value, percentiles(means), p, BOOTSTRAP)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of so many examples that only one model has right."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # binomial coefficients, each from the one before: there may be thousands
    for drawn in range(fewer):
        term = term * (count - drawn) // (drawn + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << count))
