"""Bootstraps over test examples: each task's examples are resampled with replacement.

The random numbers are fixed, so equal outcomes give equal intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    #: the lower and the upper end of an interval
    Interval = tuple[float, float]
    #: one value per example, and one weight per example; None for equal weights
    Outcomes = tuple[Sequence[float], Sequence[float] | None]

#: The probability on either side of a 95 % interval.
TAIL = (1 - 0.95) / 2
RESAMPLES = 2000
#: A bootstrap of differences needs this many examples per task, and as many that differ in all:
#: fewer cannot be significant, even all in one direction (2 / 2**5 > 0.05).
_FEWEST_EXAMPLES = 6
#: Resample by counts up to this many distinct rows, and example by example beyond.
_COUNTED_ROWS = 8
#: Examples drawn in one step, which bounds the memory.
_DRAWS_PER_STEP = 2**22


def paired_bootstrap(tasks: Sequence[Outcomes]) -> tuple[Interval | None, float]:
    """Return the 95 % interval of the mean difference of two models, and its two-sided p-value.

    Each task is one difference per example, with weights or None. The statistic is the mean over
    tasks of the weighted mean differences. The interval is None if a task has fewer than 6 examples
    or fewer than 6 examples of all tasks differ: resamples of so few examples vary too little. The
    p-value is twice the share of resampled means on the other side of 0, not corrected for multiple
    tests. It is too small for few examples.
    """
    means = resample(tasks)
    fewer = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (fewer + 1) / (len(means) + 1))
    differing = sum(value != 0 for values, _ in tasks for value in values)
    smallest = min(len(values) for values, _ in tasks)
    has_interval = min(differing, smallest) >= _FEWEST_EXAMPLES
    return percentiles(means) if has_interval else None, p_value


def resample(tasks: Sequence[Outcomes]) -> Tensor:
    """Return resampled means over tasks of weighted means, shape (RESAMPLES,), fp64."""
    import torch

    columns = []
    for outcomes, weights in tasks:
        values = torch.tensor(outcomes, dtype=torch.float64)
        counts = torch.ones_like(values) if weights is None else values.new_tensor(weights)
        columns.append(torch.stack((values * counts, counts), dim=1))
    return resample_quotients(columns)


def resample_quotients(tasks: Sequence[Tensor]) -> Tensor:
    """Return resampled means over tasks of quotients of sums, shape (RESAMPLES,), fp64.

    Each task has shape (examples, 2): every example's summand of the numerator and denominator.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    quotients = []
    for rows in tasks:
        distinct, counts = torch.unique(rows, dim=0, return_counts=True)
        if len(distinct) <= _COUNTED_ROWS:
            sums = _sum_by_counts(distinct, counts, generator)
        else:
            sums = _sum_by_examples(rows, generator)
        quotients.append(sums[:, 0] / sums[:, 1])
    return torch.stack(quotients).mean(dim=0)


def percentiles(means: Tensor) -> Interval | None:
    """Return the interval of the middle 95 % of resampled means.

    A quotient is not finite if a resample's denominator is 0, and then lies above all others. None
    if more of them do than lie above the interval.
    """
    is_finite = means.isfinite()
    if is_finite.sum() < (1 - TAIL) * len(means):
        return None
    means = means.where(is_finite, means[is_finite].max())
    low, high = means.quantile(means.new_tensor([TAIL, 1 - TAIL])).tolist()
    return low, high


def _sum_by_examples(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw examples one by one; return the column sums of each resample, (RESAMPLES, 2)."""
    import torch

    size = max(1, _DRAWS_PER_STEP // len(rows))
    sums = []
    for start in range(0, RESAMPLES, size):
        shape = (min(size, RESAMPLES - start), len(rows))
        sums.append(rows[torch.randint(len(rows), shape, generator=generator)].sum(dim=1))
    return torch.cat(sums)


def _sum_by_counts(distinct: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Draw how often each distinct row occurs: the same distribution, a hundred times as fast."""
    import torch

    total = int(counts.sum())
    remaining = torch.full((RESAMPLES,), float(total), dtype=torch.float64)
    sums = torch.zeros(RESAMPLES, 2, dtype=torch.float64)
    for row, count in zip(distinct, counts.tolist(), strict=True):
        share = torch.full_like(remaining, count / total)
        drawn = torch.binomial(remaining, share, generator=generator)
        sums += drawn[:, None] * row
        remaining, total = remaining - drawn, total - count
    return sums
