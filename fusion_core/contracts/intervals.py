"""95 % confidence intervals of scores over the test examples.

Right and wrong answers get Wilson's interval (1927), which is accurate even at 0 and 100 %. Other
scores, and averages over tasks, get percentiles of a bootstrap.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, TypeGuard

from fusion_core.contracts.bootstrap import TAIL, percentiles, resample, resample_quotients
from fusion_core.contracts.measurements import Measured, Metric, MetricValues

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from fusion_core.contracts.bootstrap import Interval


class Intervals:
    """The 95 % intervals of a table's figures, over each task's test examples.

    Subclass it to compute intervals over something else, such as seeds: override the three methods,
    and describe the source of variation in `over` and `missing`.
    """

    #: the source of variation, for the note below a table
    over: ClassVar[str] = "test examples"
    #: why a table has no intervals
    missing: ClassVar[str] = "no outcomes of single examples are stored; run fuse evaluate"

    def of_task(self, metrics: MetricValues) -> Interval | None:
        """Return the interval of a task's main metric.

        None if the task keeps no outcomes, or too few for an interval.
        """
        if isinstance(metrics, Measured) and metrics.is_binary:
            return wilson(int(sum(metrics.outcomes)), len(metrics.outcomes))
        return _bootstrap([metrics])

    def of_average(self, row: Collection[MetricValues]) -> Interval | None:
        """Return the interval of the mean of the tasks' main metrics; None as in `of_task`."""
        return self.of_task(*row) if len(row) == 1 else _bootstrap(row)

    def of_normalised(
        self, row: Collection[tuple[Metric, MetricValues, MetricValues]]
    ) -> Interval | None:
        """Return the interval of the mean over tasks of score / reference score.

        Each entry of the nonempty `row` is one task's main metric, measurement and reference
        measurement. Both are resampled together, example by example. None if they keep no outcomes
        of the same examples, or outcomes of a single one.
        """
        columns = []
        for metric, value, reference in row:
            if not (_is_resampled(value) and value.pairs_with(reference)):
                return None
            columns.append(_quotient(metric, value, reference))
        return percentiles(resample_quotients(columns))


def wilson(right: int, count: int) -> Interval:
    """Return Wilson's interval of the fraction `right` / `count`."""
    z = NormalDist().inv_cdf(1 - TAIL)
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (low if right else 0.0), (high if right < count else 1.0)


def _bootstrap(row: Collection[MetricValues]) -> Interval | None:
    measured = [task for task in row if _is_resampled(task)]
    if not measured or len(measured) < len(row):
        return None
    return percentiles(resample([(task.outcomes, task.weights) for task in measured]))


def _is_resampled(metrics: MetricValues) -> TypeGuard[Measured]:
    """Tell whether metrics keep outcomes of several examples, so that resamples of them vary."""
    return isinstance(metrics, Measured) and len(metrics.outcomes) > 1


def _quotient(metric: Metric, value: Measured, reference: Measured) -> Tensor:
    """Return the summands of numerator and denominator, shape (examples, 2), fp64."""
    import torch

    columns = torch.tensor([value.outcomes, reference.outcomes], dtype=torch.float64)
    columns *= 1.0 if value.weights is None else columns.new_tensor(value.weights)
    return columns.mT if metric.higher_is_better else columns.flip(0).mT
