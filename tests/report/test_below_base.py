"""Experts below the base: when they count as below, and how reports treat them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.contracts.measurements import Measured, Metric, Reference
from fusion_core.contracts.report import Report
from fusion_core.contracts.table_layout import build_table
from fusion_core.report.below_base import below_base_warnings
from fusion_core.report.table import print_reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.measurements import MetricValues

BITS = Metric("bits_per_byte", unit="bits per byte", higher_is_better=False)
CORRELATION = Metric("spearman", unit="")


def accuracy(right: int, count: int) -> Measured:
    return Measured({"accuracy": right / count}, [1.0] * right + [0.0] * (count - right))


def bits(values: Sequence[float]) -> Measured:
    return Measured({"bits_per_byte": sum(values) / len(values)}, values)


def below(base: MetricValues, expert: MetricValues, metric: Metric | None = None) -> dict[str, str]:
    """Return the evidence by task for one task on which the merge scores like the expert."""
    metrics = {} if metric is None else {"a": {metric.name: metric}}
    report = Report({"a": dict(expert)}, Reference({"a": base}, {"a": expert}), metrics=metrics)
    return {expert.task: expert.evidence for expert in report.experts_below_base}


PLAIN = {"a": "the figures alone"}


@pytest.mark.parametrize(
    ("base", "expert", "metric", "expected"),
    [
        ({"accuracy": 0.5}, {"accuracy": 0.3}, None, PLAIN),
        ({"accuracy": 0.3}, {"accuracy": 0.5}, None, {}),
        ({"accuracy": 0.5}, {"accuracy": 0.5 - 1e-9}, None, {}),
        ({"accuracy": 0.5}, {"accuracy": 0.0}, None, PLAIN),
        ({"bits_per_byte": 0.9}, {"bits_per_byte": 1.4}, BITS, PLAIN),
        ({"bits_per_byte": 1.4}, {"bits_per_byte": 0.9}, BITS, {}),
        ({"bits_per_byte": 0.9}, {"bits_per_byte": math.inf}, BITS, PLAIN),
        ({"spearman": -0.1}, {"spearman": -0.6}, CORRELATION, PLAIN),
        ({"spearman": -0.6}, {"spearman": -0.1}, CORRELATION, {}),
        ({"accuracy": 0.5}, {"accuracy": math.nan}, None, {}),
        ({"accuracy": math.nan}, {"accuracy": 0.5}, None, {}),
        ({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.7, "loss": 0.2}, None, {}),
        ({"loss": 1.0, "accuracy": 0.5}, {"accuracy": 0.2, "loss": 1.0}, None, {}),
    ],
)
def test_the_main_metric_and_its_direction_decide(
    base: MetricValues, expert: MetricValues, metric: Metric | None, expected: dict[str, str]
) -> None:
    assert below(base, expert, metric) == expected


@pytest.mark.parametrize(
    ("base", "expert", "metric", "expected"),
    [
        (accuracy(400, 800), accuracy(300, 800), None, {"a": "exact McNemar"}),
        (accuracy(25, 50), accuracy(24, 50), None, {}),
        (accuracy(4, 4), accuracy(0, 4), None, {}),
        (accuracy(10, 50), accuracy(10, 50), None, {}),
        (bits([1.0, 1.2] * 20), bits([1.3, 1.4] * 20), BITS, {"a": "paired bootstrap"}),
        (bits([1.0, 2.0] * 20), bits([2.01, 1.0] * 20), BITS, {}),
        (bits([1.0, 1.1, 1.2]), bits([3.0, 3.1, 3.2]), BITS, {}),
        (accuracy(400, 800), accuracy(300, 801), None, PLAIN),
    ],
)
def test_outcomes_decide_what_is_significant(
    base: MetricValues, expert: MetricValues, metric: Metric | None, expected: dict[str, str]
) -> None:
    assert below(base, expert, metric) == expected


ROTATED = Report(
    {"latin": {"accuracy": 0.6}, "greek": {"accuracy": 0.5}},
    Reference(
        {"latin": {"accuracy": 0.5}, "greek": {"accuracy": 0.4}},
        {"latin": {"accuracy": 0.3}, "greek": {"accuracy": 0.9}},
    ),
)


def test_no_table_normalises_by_an_expert_below_the_base(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_reports({"ties": ROTATED})
    output = capsys.readouterr().out
    assert "normalised" not in output
    note = "do not belong together: the expert scores below the base on latin\n"
    assert note in output
    assert note.strip() in ROTATED._repr_html_()
    labels = [entry.label for entry in build_table({"ties": ROTATED}).entries]
    assert labels == ["latin", "greek", "average", "worst"]
    assert ROTATED.normalised_average is None
    assert ROTATED.over(["greek"]).normalised_average == pytest.approx(0.5 / 0.9)
    (warning,) = below_base_warnings({"ties": ROTATED})
    assert "latin (30.0, base 50.0), by the figures alone" in warning


def test_only_reports_without_experts_below_the_base_are_normalised() -> None:
    experts = {task: {"accuracy": 1.0} for task in ROTATED.tasks}
    good = replace(ROTATED, reference=replace(ROTATED.reference, experts=experts))
    table = build_table({"rotated": ROTATED, "good": good})
    (entry,) = (entry for entry in table.entries if entry.label == "normalised")
    figures = [figure and round(figure.value, 3) for figure in entry.figures]
    assert dict(zip(table.headings, figures, strict=True)) == {
        "base": None,
        "rotated": None,
        "good": 0.55,
        "experts of rotated": None,
        "experts of good": 1.0,
    }
    assert ROTATED.as_json()["experts_below_base"] == {
        "latin": {
            "metric": "accuracy",
            "base": 0.5,
            "expert": 0.3,
            "evidence": "the figures alone",
        }
    }
    assert good.as_json()["experts_below_base"] == {}


def on_examples(expert: int) -> Report:
    """Return a report on 100 examples, of which the base gets 50 right."""
    row = {"a": accuracy(expert, 100)}
    return Report(row, Reference({"a": accuracy(50, 100)}, row))


def read_back(report: Report, **changes: Any) -> Report:
    """Return a report as read from its file, with changed content."""
    return Report.from_json(json.loads(json.dumps(report.as_json())) | changes)


def test_experts_below_the_base_are_found_anew_on_reading() -> None:
    rotated = on_examples(30)
    assert rotated.as_json()["experts_below_base"]["a"]["evidence"] == "exact McNemar"
    (below_base,) = read_back(rotated, experts_below_base={}).experts_below_base
    assert (below_base.task, below_base.evidence) == ("a", "the figures alone")


def test_within_chance_persists_without_outcomes() -> None:
    chance = on_examples(48)
    assert chance.normalised_average == 1.0
    assert chance.as_json()["within_chance"] == ["a"]
    assert read_back(chance).normalised_average == 1.0
    assert chance.without_outcomes().experts_below_base == ()
    assert len(read_back(chance, within_chance=[]).experts_below_base) == 1
