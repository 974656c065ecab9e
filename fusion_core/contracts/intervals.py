"""How sure a figure is: 95 % intervals over examples, or over runs that differ in the seed.

What is right or wrong has Wilson's interval (1927), exact enough at 0 and 100 %. Other figures, and
averages over tasks, have percentiles of a bootstrap: examples are drawn again, with replacement,
within each task. Means over runs have Student's interval.
"""

from __future__ import annotations

import math
from statistics import NormalDist, stdev
from typing import TYPE_CHECKING, TypeGuard

from fusion_core.contracts.measures import Measured, Metric, Metrics, Repeated, main, mean_ratio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import torch
    from torch import Tensor

    #: its lower and its upper end
    Interval = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 2000
_TAIL = (1 - LEVEL) / 2
#: So few distinct outcomes are counted, not drawn one by one.
_FEW = 8
#: As many examples are drawn at once.
_AT_ONCE = 2**22


def interval_of(metrics: Metrics) -> Interval | None:
    """Return the 95 % interval of a task's main metric.

    None where the task keeps no outcomes, or too few for an interval.
    """
    if isinstance(metrics, Repeated):
        return student([main(each) for each in metrics.runs])
    if isinstance(metrics, Measured) and metrics.is_binary:
        return wilson(int(sum(metrics.outcomes)), len(metrics.outcomes))
    return _bootstrapped([metrics])


def interval_of_average(row: Collection[Metrics]) -> Interval | None:
    """Return the 95 % interval of the mean of tasks' main metrics; None as for `interval_of`."""
    if len(row) == 1:
        return interval_of(*row)
    repeated = [each.runs for each in row if isinstance(each, Repeated)]
    if repeated and len(repeated) == len(row):
        return student([sum(map(main, run)) / len(run) for run in zip(*repeated, strict=True)])
    return _bootstrapped(row)


def interval_of_normalised(
    row: Collection[tuple[Metric, Metrics, Metrics]],
) -> Interval | None:
    """Return the 95 % interval of the mean of how good tasks' main metrics are beside references.

    A row has a metric, what was measured, and the reference, for one task at least. Both are drawn
    together, example by example. None where they keep no outcomes of the same examples.
    """
    if all(isinstance(value, Repeated) for _, value, _ in row):
        return student([math.nan if each is None else each for each in _by_run(row)])
    if any(not of_same_examples(value, reference) for _, value, reference in row):
        return None
    return percentiles(_mean_quotient([_beside(*each) for each in row]))


def _by_run(row: Collection[tuple[Metric, Metrics, Metrics]]) -> Iterator[float | None]:
    metrics, values, references = zip(*row, strict=True)
    for run in zip(*(each.runs for each in values), strict=True):
        yield mean_ratio(zip(metrics, map(main, run), map(main, references), strict=True))


def of_same_examples(one: Metrics, other: Metrics) -> TypeGuard[Measured]:
    """Tell whether both keep outcomes, of as many examples, each with the same weight."""
    if not (isinstance(one, Measured) and isinstance(other, Measured)):
        return False
    return len(one.outcomes) == len(other.outcomes) and one.weights == other.weights


def _beside(metric: Metric, value: Metrics, reference: Metrics) -> Tensor:
    import torch

    both = [each for each in (value, reference) if isinstance(each, Measured)]
    columns = torch.tensor([each.outcomes for each in both], dtype=torch.float64)
    columns *= 1.0 if both[0].weights is None else columns.new_tensor(both[0].weights)
    return columns.mT if metric.higher_is_better else columns.flip(0).mT


def _bootstrapped(row: Collection[Metrics]) -> Interval | None:
    measured = [each for each in row if isinstance(each, Measured) and len(each.outcomes) > 1]
    if not measured or len(measured) < len(row):
        return None
    return percentiles(resample([(each.outcomes, each.weights) for each in measured]))


def wilson(right: int, count: int) -> Interval:
    """Return the interval of a fraction, `right` of `count` examples."""
    z = NormalDist().inv_cdf(1 - _TAIL)
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (low if right else 0.0), (high if right < count else 1.0)


def student(values: Sequence[float]) -> Interval | None:
    """Return the interval of the mean of independent runs; None for a single one."""
    if len(values) < 2 or not all(map(math.isfinite, values)):  # noqa: PLR2004
        return None
    mean = sum(values) / len(values)
    half = student_quantile(1 - _TAIL, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def student_quantile(share: float, freedom: int) -> float:
    """Return where Student's distribution reaches a share above 1/2, by bisection."""
    low, high = 0.0, 1.0
    while _student_below(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if _student_below(middle, freedom) >= share else (middle, high)
    return high


def _student_below(value: float, freedom: int) -> float:
    """Return the share of Student's distribution below a value; Abramowitz and Stegun 26.7.3-4."""
    angle = math.atan(value / math.sqrt(freedom))
    is_odd = freedom % 2
    term = total = math.cos(angle) if is_odd else 1.0
    for k in range(2 + is_odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if not is_odd:
        return 0.5 + math.sin(angle) * total / 2
    within = angle + math.sin(angle) * (total if freedom > 1 else 0.0)
    return 0.5 + within / math.pi


def resample(
    tasks: Sequence[tuple[Sequence[float], Sequence[float] | None]], *, seed: int = 0
) -> Tensor:
    """Return means over tasks of resampled weighted means, shape (RESAMPLES,), fp64.

    A task is its outcomes, and their weights or None.
    """
    import torch

    columns = []
    for outcomes, weights in tasks:
        values = torch.tensor(outcomes, dtype=torch.float64)
        counts = torch.ones_like(values) if weights is None else values.new_tensor(weights)
        columns.append(torch.stack((values * counts, counts), dim=1))
    return _mean_quotient(columns, seed=seed)


def _mean_quotient(tasks: Sequence[Tensor], *, seed: int = 0) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.stack([_resampled(rows, generator) for rows in tasks]).mean(dim=0)


def _resampled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return RESAMPLES quotients of the two columns' sums; `rows` has one for each example."""
    import torch

    distinct, counts = torch.unique(rows, dim=0, return_counts=True)
    few = len(distinct) <= _FEW
    sums = _counted(distinct, counts, generator) if few else _drawn(rows, generator)
    return sums[:, 0] / sums[:, 1]


def _drawn(rows: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    size = max(1, _AT_ONCE // len(rows))
    starts = range(0, RESAMPLES, size)
    shapes = ((min(size, RESAMPLES - start), len(rows)) for start in starts)
    picks = (torch.randint(len(rows), shape, generator=generator) for shape in shapes)
    return torch.cat([rows[each].sum(dim=1) for each in picks])


def _counted(distinct: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Draw how often each distinct row comes up: the same distribution, a hundred times as fast."""
    import torch

    total = int(counts.sum())
    left = torch.full((RESAMPLES,), float(total), dtype=torch.float64)
    sums = torch.zeros(RESAMPLES, 2, dtype=torch.float64)
    for row, count in zip(distinct, counts.tolist(), strict=True):
        drawn = torch.binomial(left, torch.full_like(left, count / total), generator=generator)
        sums += drawn[:, None] * row
        left, total = left - drawn, total - count
    return sums


def percentiles(means: Tensor) -> Interval | None:
    """Return the ends between which the middle 95 % lie; None for what is not finite."""
    if not bool(means.isfinite().all()):
        return None
    low, high = means.quantile(means.new_tensor([_TAIL, 1 - _TAIL])).tolist()
    return low, high
