"""Bootstraps: test examples are drawn again with replacement, within each task.

The draws are always the same ones, so equal outcomes give equal figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    #: the lower and the upper end of an interval
    Interval = tuple[float, float]
    #: one value per example, and how much each example counts; None for all alike
    Outcomes = tuple[Sequence[float], Sequence[float] | None]

#: How much of a distribution lies on either side of a 95 % interval.
TAIL = (1 - 0.95) / 2
RESAMPLES = 2000
#: Up to so many distinct rows are drawn by their counts, more of them one by one.
_COUNTED_ROWS = 8
#: Examples drawn in one step, which bounds the memory.
_DRAWS_PER_STEP = 2**22


def paired_bootstrap(tasks: Sequence[Outcomes]) -> tuple[Interval | None, float]:
    """Return the 95 % interval of the mean difference of two models, and its two-sided p-value.

    A task is its differences by example, and their weights or None. The figure is the mean over
    tasks of the weighted means. The p-value is twice the share of resampled means on the other
    side of 0. It is not corrected for many tests.
    """
    means = resample(tasks)
    sides = int((means <= 0).sum()), int((means >= 0).sum())
    return percentiles(means), min(1.0, 2 * (min(sides) + 1) / (len(means) + 1))


def resample(tasks: Sequence[Outcomes]) -> Tensor:
    """Return means over tasks of resampled weighted means, shape (RESAMPLES,), fp64."""
    import torch

    columns = []
    for outcomes, weights in tasks:
        values = torch.tensor(outcomes, dtype=torch.float64)
        counts = torch.ones_like(values) if weights is None else values.new_tensor(weights)
        columns.append(torch.stack((values * counts, counts), dim=1))
    return resample_quotients(columns)


def resample_quotients(tasks: Sequence[Tensor]) -> Tensor:
    """Return means over tasks of resampled quotients of two sums, shape (RESAMPLES,), fp64.

    A task has one row per example: what it adds to the upper sum, and what to the lower one.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    quotients = []
    for rows in tasks:
        distinct, counts = torch.unique(rows, dim=0, return_counts=True)
        if len(distinct) <= _COUNTED_ROWS:
            sums = _draw_counts(distinct, counts, generator)
        else:
            sums = _draw_rows(rows, generator)
        quotients.append(sums[:, 0] / sums[:, 1])
    return torch.stack(quotients).mean(dim=0)


def percentiles(means: Tensor) -> Interval | None:
    """Return the ends between which the middle 95 % lie; None if any mean is not finite."""
    if not bool(means.isfinite().all()):
        return None
    low, high = means.quantile(means.new_tensor([TAIL, 1 - TAIL])).tolist()
    return low, high


def _draw_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw examples one by one; return the sums of each resample."""
    import torch

    size = max(1, _DRAWS_PER_STEP // len(rows))
    sums = []
    for start in range(0, RESAMPLES, size):
        shape = (min(size, RESAMPLES - start), len(rows))
        sums.append(rows[torch.randint(len(rows), shape, generator=generator)].sum(dim=1))
    return torch.cat(sums)


def _draw_counts(distinct: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Draw how often each distinct row occurs: the same distribution, a hundred times as fast."""
    import torch

    total = int(counts.sum())
    left = torch.full((RESAMPLES,), float(total), dtype=torch.float64)
    sums = torch.zeros(RESAMPLES, 2, dtype=torch.float64)
    for row, count in zip(distinct, counts.tolist(), strict=True):
        drawn = torch.binomial(left, torch.full_like(left, count / total), generator=generator)
        sums += drawn[:, None] * row
        left, total = left - drawn, total - count
    return sums
