"""Test whether one of two models is better on the same test examples, per task and on average.

Right and wrong answers are compared by McNemar's exact test. Its null hypothesis: an example that
only one model gets right is equally likely to be either model's. All other scores, and the average,
are compared by Fisher's sign-flip test. Its null hypothesis: the difference on an example is
equally likely to have either sign. No p-value is corrected for multiple tasks. Intervals are those
of a paired bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from fusion_core import Measured
from fusion_core.commands import build_table, paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fusion_core import Metric, Report

    #: differences per example, and weights of the examples
    Outcomes = tuple[Sequence[float], Sequence[float] | None]
    Array = npt.NDArray[np.float64]

MCNEMAR, SIGN_FLIPS = "exact McNemar", "sign-flip test"
_SMALLEST_P = 0.001  # smallest value with three decimals
#: Count flips exactly if their sums have at most this many combinations.
_MOST_SUMS = 2**16
#: The random flips, and how many signs are drawn in one step, which bounds the memory.
_FLIPS, _SIGNS_PER_STEP = 9999, 2**22
#: Sums that differ by less than this part of all terms' sizes differ by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """The difference between two models on a task or on average."""

    label: str
    metric: Metric
    #: second - first, in the metric's unit
    value: float
    #: 95 % interval of the difference; None if too few examples differ
    interval: tuple[float, float] | None
    #: probability of a difference of at least this size between equally good models
    p: float
    test: str
    #: the tasks of an average; empty for one task
    over: Sequence[str] = ()

    @property
    def is_task(self) -> bool:
        """Whether this is the difference on one task."""
        return not self.over

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
        data = {"difference": self.value, "low": low, "high": high, "p": self.p, "test": self.test}
        return {**data, "over": list(self.over)} if self.over else data


def compare_reports(first: Report, second: Report) -> list[Difference]:
    """Compare reports on the tasks for which both store outcomes, and on their average.

    Examples count as the same if their number and weights agree. The average is named by its tasks
    if these are not all that the reports share.
    """
    if first.measured_on != second.measured_on:
        return []
    outcomes: dict[str, Outcomes] = {}
    differences = []
    shared = build_table({"first": first, "second": second}).shared
    for task in shared:
        before, after = first.tasks[task], second.tasks[task]
        if isinstance(before, Measured) and before.pairs_with(after):
            outcomes[task] = before.differences(after), before.weights
            metric = first.main_metrics[task]
            differences.append(_compare_task(task, metric, before, after))
    metrics = [first.main_metrics[task] for task in outcomes]
    if len(metrics) > 1 and all(metric.agrees(metrics[0]) for metric in metrics):
        value = sum(map(_mean, outcomes.values())) / len(outcomes)
        rows = [*outcomes.values()]
        interval, p = paired_bootstrap(rows)[0], flip_signs(rows)
        over = tuple(outcomes)
        label = "average" if len(over) == len(shared) else f"average over {', '.join(over)}"
        differences.append(Difference(label, metrics[0], value, interval, p, SIGN_FLIPS, over))
    return differences


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value; the arguments count examples that only one model gets right."""
    count = only_first + only_second
    return float(stats.binomtest(only_first, count).pvalue) if count else 1.0


def flip_signs(tasks: Sequence[Outcomes]) -> float:
    """Return the two-sided p-value of the mean over tasks of weighted mean differences.

    It is the probability of a mean of at least this size if every difference has a random sign. It
    is exact for few examples, or few different sizes. Otherwise it is estimated from 9999 random
    flips, always the same ones. `scipy.stats.permutation_test` computes the same, but takes a
    hundred times as long for a thousand examples.
    """
    terms = np.concatenate([_summands(outcomes) for outcomes in tasks])
    terms = terms[terms != 0]
    if not np.isfinite(terms).all():
        return math.nan if np.isnan(terms).any() else 1.0  # every sum of them is infinite
    least = abs(terms.sum()) - _ROUNDING * abs(terms).sum()  # differences may cancel
    sizes, counts = np.unique(np.abs(terms), return_counts=True)
    if np.log2(counts + 1).sum() <= np.log2(_MOST_SUMS):
        sums, shares = _enumerate_flips(sizes, counts)
        return min(1.0, float(shares[np.abs(sums) >= least].sum()))
    sums = _draw_flips(terms)
    return (int((np.abs(sums) >= least).sum()) + 1) / (len(sums) + 1)


def _summands(outcomes: Outcomes) -> Array:
    """Return the terms of a task's weighted mean."""
    values, weights = outcomes
    factors = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    terms: Array = np.multiply(values, factors / factors.sum())
    return terms


def _enumerate_flips(sizes: Array, counts: npt.NDArray[np.integer]) -> tuple[Array, Array]:
    """Return all sums that flips of signs lead to, and the probability of each."""
    sums, shares = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        positive = np.arange(count + 1)
        sums = np.add.outer(sums, size * (2 * positive - count)).ravel()
        shares = np.multiply.outer(shares, stats.binom.pmf(positive, count, 0.5)).ravel()
    return sums, shares


def _draw_flips(terms: Array) -> Array:
    """Return the sums of terms with random signs."""
    random, size = np.random.default_rng(0), max(1, _SIGNS_PER_STEP // len(terms))
    sums = []
    for start in range(0, _FLIPS, size):
        shape = (min(size, _FLIPS - start), len(terms))
        sums.append((2.0 * random.integers(0, 2, shape, dtype=np.int8) - 1) @ terms)
    return np.concatenate(sums)


def _compare_task(task: str, metric: Metric, first: Measured, second: Measured) -> Difference:
    differences = first.differences(second)
    outcomes = differences, first.weights
    interval, _ = paired_bootstrap([outcomes])
    if first.is_binary and second.is_binary:
        p, test = mcnemar(differences.count(-1.0), differences.count(1.0)), MCNEMAR
    else:
        p, test = flip_signs([outcomes]), SIGN_FLIPS
    return Difference(task, metric, _mean(outcomes), interval, p, test)


def _mean(outcomes: Outcomes) -> float:
    values, weights = outcomes
    return float(np.average(values, weights=weights))
