"""Compare differences of two models with formulas and with scipy's bootstrap."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fusion_core import Measured, Metric, Report
from fusion_report.comparison.differences import compare_reports, flip_signs, mcnemar

RANDOM = np.random.default_rng(0)


def accuracy(right: np.ndarray) -> Measured:
    return Measured({"accuracy": float(right.mean())}, right)


def bits(values: np.ndarray, weights: np.ndarray) -> Measured:
    return Measured({"bits": float(np.average(values, weights=weights))}, values, weights)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 9), (9, 3), (0, 5), (4, 4), (700, 800)])
def test_mcnemar_is_a_binomial_test(first: int, second: int) -> None:
    count, fewer = first + second, min(first, second)
    tail = Fraction(sum(math.comb(count, drawn) for drawn in range(fewer + 1)), 2**count)
    assert mcnemar(first, second) == pytest.approx(float(min(1, 2 * tail)), rel=1e-9)


def test_right_and_wrong_are_compared_by_example() -> None:
    first, second = RANDOM.random(400) < 0.6, RANDOM.random(400) < 0.7
    (difference,) = compare_reports(Report({"a": accuracy(first)}), Report({"a": accuracy(second)}))
    only = int((first & ~second).sum()), int((~first & second).sum())
    assert difference.value == pytest.approx((only[1] - only[0]) / 400)
    assert difference.p == mcnemar(*only)
    error = np.std(second.astype(float) - first) / 20
    ends = difference.value - 1.96 * error, difference.value + 1.96 * error
    assert difference.interval == pytest.approx(ends, abs=0.006)
    low, high = difference.interval or (math.nan, math.nan)
    assert difference.as_json() == {
        "difference": difference.value,
        "low": low,
        "high": high,
        "p": difference.p,
        "test": "exact McNemar",
    }


def test_other_scores_are_compared_by_flips_and_bootstrapped_in_pairs() -> None:
    sizes = RANDOM.integers(20, 400, size=80).astype(float)
    before = RANDOM.gamma(4.0, 0.25, size=80)
    after = before + RANDOM.normal(-0.01, 0.1, size=80)
    lower = {"wiki": {"bits": Metric("bits", unit="", higher_is_better=False)}}
    reports = [Report({"wiki": bits(values, sizes)}, metrics=lower) for values in (before, after)]
    (difference,) = compare_reports(*reports)

    def mean(picked: np.ndarray, axis: int = -1) -> np.ndarray:
        index = picked.astype(int)
        return ((after - before) * sizes)[index].sum(axis) / sizes[index].sum(axis)

    known = stats.bootstrap(
        (np.arange(80),), mean, n_resamples=20_000, method="percentile", random_state=1
    )
    ends = known.confidence_interval
    room = 0.06 * (ends.high - ends.low)
    assert difference.interval == pytest.approx((ends.low, ends.high), abs=room)
    share = p_of_flips((after - before) * sizes / sizes.sum())
    assert 0.02 < share < 0.9
    assert difference.p == pytest.approx(share, abs=0.03)
    assert difference.test == "sign-flip test"


def p_of_flips(terms: np.ndarray) -> float:
    """Return the p-value of the sum of terms by scipy: exact for up to 13 of them."""
    result = stats.permutation_test(
        (terms,), np.sum, permutation_type="samples", vectorized=True, random_state=1
    )
    return float(result.pvalue)


def test_flips_of_few_examples_are_counted_exactly() -> None:
    first, second, weights = RANDOM.normal(1, 1, 5), RANDOM.integers(-1, 2, 6), np.arange(1.0, 7.0)
    terms = np.concatenate([first / 5, second * weights / 21])
    known = p_of_flips(terms)
    assert 0 < known < 1
    assert flip_signs([(first, None), (second, weights)]) == pytest.approx(known, rel=1e-9)
    many = [1.0] * 300 + [-1.0] * 240 + [0.0] * 1000
    assert flip_signs([(many, None)]) == pytest.approx(mcnemar(300, 240), rel=1e-9)
    assert flip_signs([([math.inf, 1.0], None)]) == 1
    assert math.isnan(flip_signs([([math.nan, 1.0], None)]))


def test_a_difference_that_cancels_is_chance() -> None:
    assert flip_signs([([0.1, 0.2, 0.7, -0.7, -0.2, -0.1], None)]) == 1
    gains, losses = [1.0] * 6 + [0.0] * 294, [-1.0] * 6 + [0.0] * 294
    assert flip_signs([(gains, None), (losses, None)]) == pytest.approx(1)


def test_an_average_of_few_examples_is_not_significant() -> None:
    wrong, right = accuracy(np.zeros(1)), accuracy(np.ones(1))
    rows = compare_reports(Report({"a": wrong, "b": wrong}), Report({"a": right, "b": right}))
    assert [(row.interval, row.p) for row in rows] == [(None, 1.0), (None, 1.0), (None, 0.5)]
    wrong, right = accuracy(np.zeros(6)), accuracy(np.ones(6))
    rows = compare_reports(Report({"a": wrong, "b": wrong}), Report({"a": right, "b": right}))
    assert [row.interval for row in rows] == [(1.0, 1.0)] * 3
    assert rows[2].p == pytest.approx(2 / 2**12)


def test_the_average_is_over_the_tasks_that_both_keep() -> None:
    right = [RANDOM.random(100) < share for share in (0.5, 0.6, 0.6, 0.9)]
    tasks = [{"a": accuracy(right[0]), "b": accuracy(right[1]), "plain": {"accuracy": 0.5}}]
    tasks += [{"a": accuracy(right[2]), "b": accuracy(right[3]), "plain": {"accuracy": 0.9}}]
    differences = compare_reports(*map(Report, tasks))
    assert [difference.label for difference in differences] == ["a", "b", "average over a, b"]
    values = [difference.value for difference in differences]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)
    assert [difference.is_task for difference in differences] == [True, True, False]
    assert differences[2].cells[1].startswith("+")


def test_other_examples_are_not_compared() -> None:
    right, sizes = RANDOM.random(10) < 0.5, np.arange(1.0, 11.0)
    report = Report({"a": accuracy(right), "b": bits(sizes, sizes)})
    labels = [difference.label for difference in compare_reports(report, report)]
    assert labels == ["a", "b", "average"]
    fewer = Report({"a": accuracy(right[:9]), "b": bits(sizes, sizes + 1)})
    assert compare_reports(report, fewer) == []
    half = Report(report.tasks, measured_on="a half")
    assert compare_reports(report, half) == []
    assert compare_reports(Report({"a": {"accuracy": 1.0}}), report) == []


def test_equal_reports_have_no_difference() -> None:
    same = Report({"a": accuracy(RANDOM.random(50) < 0.5), "b": accuracy(RANDOM.random(50) < 0.5)})
    for difference in compare_reports(same, same):
        assert (difference.value, difference.interval, difference.p) == (0.0, None, 1.0)
