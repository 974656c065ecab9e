"""Intervals and bootstraps, compared with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fusion_core.contracts.bootstrap import paired_bootstrap
from fusion_core.contracts.intervals import Intervals, wilson
from fusion_core.contracts.measurements import Measured, Metric

INTERVALS = Intervals()
RANDOM = np.random.default_rng(0)
BITS = RANDOM.gamma(4.0, 0.25, size=60)
BYTES = RANDOM.integers(20, 400, size=60).astype(float)


def accuracy(*outcomes: float) -> Measured:
    return Measured({"accuracy": sum(outcomes) / len(outcomes)}, outcomes)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (3, 10), (745, 1000), (1, 1)])
def test_right_and_wrong_have_wilsons_interval(right: int, count: int) -> None:
    known = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((known.low, known.high), abs=1e-12)
    measured = accuracy(*[1] * right, *[0] * (count - right))
    assert INTERVALS.of_task(measured) == wilson(right, count)


def known_bootstrap(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    def mean(picked: np.ndarray, axis: int = -1) -> np.ndarray:
        index = picked.astype(int)
        return (values * weights)[index].sum(axis) / weights[index].sum(axis)

    data = (np.arange(len(values)),)
    result = stats.bootstrap(data, mean, n_resamples=20_000, method="percentile", random_state=1)
    return result.confidence_interval.low, result.confidence_interval.high


@pytest.mark.parametrize("weights", [BYTES, None], ids=["weighted", "all alike"])
def test_other_outcomes_are_bootstrapped(weights: np.ndarray | None) -> None:
    filled = np.ones_like(BITS) if weights is None else weights
    measured = Measured({"bits": float(np.average(BITS, weights=filled))}, BITS, weights)
    low, high = INTERVALS.of_task(measured) or (math.nan, math.nan)
    known = known_bootstrap(BITS, filled)
    assert (low, high) == pytest.approx(known, abs=0.06 * (known[1] - known[0]))
    assert INTERVALS.of_task(measured) == (low, high)  # the same every time


def test_averages_resample_within_each_task() -> None:
    first, second = accuracy(*[1] * 300, *[0] * 100), accuracy(*[1] * 20, *[0] * 80)
    low, high = INTERVALS.of_average([first, second]) or (math.nan, math.nan)
    error = math.sqrt(0.75 * 0.25 / 400 + 0.2 * 0.8 / 100) / 2  # nearly normal
    assert (low, high) == pytest.approx((0.475 - 1.96 * error, 0.475 + 1.96 * error), abs=0.004)


def test_resampling_by_counts_matches_resampling_by_examples() -> None:
    few = [0.0] * 30 + [1.0] * 50 + [2.0] * 20
    many = [value + 1e-9 * number for number, value in enumerate(few)]
    intervals = [INTERVALS.of_task(Measured({"score": sum(x) / 100}, x)) for x in (few, many)]
    assert intervals[0] == pytest.approx(intervals[1], abs=0.02)


def test_without_outcomes_there_is_no_interval() -> None:
    plain, one = {"accuracy": 0.5}, Measured({"bits": 0.25}, [0.25])
    infinite = Measured({"bits": math.inf}, [math.inf, 1.0])
    assert [INTERVALS.of_task(metrics) for metrics in (plain, one, infinite)] == [None, None, None]
    assert INTERVALS.of_average([accuracy(1, 0), plain]) is None
    assert INTERVALS.of_average([]) is None
    right = Metric("accuracy")
    assert INTERVALS.of_normalised([(right, accuracy(1), accuracy(1))] * 2) is None
    assert INTERVALS.of_normalised([(right, accuracy(1, 0), accuracy(1, 1))]) is not None


@pytest.mark.parametrize(
    ("outcomes", "weights"), [([1, 0], None), ([], None), ([1, 1], [1]), ([1, 0], [1, 1])]
)
def test_outcomes_must_have_the_metric_as_their_mean(
    outcomes: list[int], weights: list[int] | None
) -> None:
    with pytest.raises(ValueError, match=r"accuracy is 1\.0, and the mean|zip\(\)"):
        Measured({"accuracy": 1.0}, outcomes, weights)


def test_a_bootstrap_of_few_differences_gives_no_interval() -> None:
    five, six = [1.0] * 5 + [0.0] * 5, [1.0] * 6 + [0.0] * 4
    assert paired_bootstrap([(five, None)])[0] is None
    assert paired_bootstrap([(six, None), ([0.0] * 5, None)])[0] is None  # few examples of a task
    low, high = paired_bootstrap([(six, None), ([0.0] * 6, None)])[0] or (math.nan, math.nan)
    assert 0 < low < 0.3 < high < 0.5


def test_normalised_intervals_resample_merge_and_expert_together() -> None:
    """If merge and expert err on the same examples, resampling does not change their quotient."""
    right = Metric("accuracy")
    expert, half = accuracy(*[1] * 80, *[0] * 20), accuracy(*[1] * 40, *[0] * 60)
    assert INTERVALS.of_normalised([(right, expert, expert)]) == (1.0, 1.0)
    low, high = INTERVALS.of_normalised([(right, half, expert)] * 2) or (math.nan, math.nan)
    samples = RANDOM.multinomial(100, [0.4, 0.4, 0.2], size=(20_000, 2))
    shares = (samples[..., 0] / (samples[..., 0] + samples[..., 1])).mean(1)
    assert (low, high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.01)
    weak, weaker = (accuracy(*[1] * count, *[0] * (30 - count)) for count in (6, 2))
    assert INTERVALS.of_normalised([(right, weak, weak)]) == (1.0, 1.0)  # 0 / 0 in few resamples
    assert INTERVALS.of_normalised([(right, weaker, weaker)]) is None
    assert INTERVALS.of_normalised([(right, half, accuracy(1, 0))]) is None  # other examples
    assert INTERVALS.of_normalised([(right, half, {"accuracy": 0.8})]) is None


def test_normalised_intervals_are_inverted_if_lower_is_better() -> None:
    bits = Metric("bits", unit="bits", higher_is_better=False)
    value = Measured({"bits": (2 * BITS * BYTES).sum() / BYTES.sum()}, 2 * BITS, BYTES)
    expert = Measured({"bits": (BITS * BYTES).sum() / BYTES.sum()}, BITS, BYTES)
    assert INTERVALS.of_normalised([(bits, value, expert)]) == pytest.approx((0.5, 0.5))
