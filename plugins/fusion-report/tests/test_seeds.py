"""Compare means over seeds with tables of Student's distribution."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fusion_core import Metric, Reference, Report
from fusion_report.comparison.seeds import (
    Repeated,
    SeedIntervals,
    average_seeds,
    group_by_recipe,
    student,
)

if TYPE_CHECKING:
    from pathlib import Path

INTERVALS = SeedIntervals()


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (11, 2.228), (31, 2.042)]
)
def test_means_over_seeds_have_students_interval(count: int, quantile: float) -> None:
    values = np.random.default_rng(count).random(count)
    half = quantile * values.std(ddof=1) / math.sqrt(count)
    known = values.mean() - half, values.mean() + half
    assert student(list(values)) == pytest.approx(known, abs=1e-3 * half)
    repeated = Repeated([{"accuracy": value, "loss": 1.0} for value in values])
    assert repeated == pytest.approx({"accuracy": values.mean(), "loss": 1.0})
    assert INTERVALS.of_task(repeated) == student(list(values))


def test_one_value_has_no_interval() -> None:
    assert student([0.5]) is None
    assert student([0.5, math.inf]) is None
    assert student([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert INTERVALS.of_task({"accuracy": 0.5}) is None
    assert INTERVALS.of_average([Repeated([{"a": 1.0}, {"a": 0.5}]), {"a": 1.0}]) is None
    assert INTERVALS.of_average([]) is None


def test_averages_and_shares_are_taken_run_by_run() -> None:
    values = [0.61, 0.64, 0.6]
    runs = Repeated([{"accuracy": value} for value in values])
    other = Repeated([{"accuracy": 1 - value} for value in values])
    low, high = INTERVALS.of_average([runs, other]) or (math.nan, math.nan)
    assert low == pytest.approx(high)  # what one task wins with a seed, the other loses
    row = [(Metric("accuracy"), runs, {"accuracy": 0.8})]
    shares = [value / 0.8 for value in values]
    assert INTERVALS.of_normalised(row) == pytest.approx(student(shares))
    nothing = [(Metric("accuracy"), runs, {"accuracy": 0.0})]
    assert INTERVALS.of_normalised(nothing) is None
    assert INTERVALS.of_normalised([(Metric("accuracy"), {"accuracy": 1.0}, runs)]) is None


def test_runs_of_other_models_are_no_seeds_of_one_recipe(tmp_path: Path) -> None:
    for project in ("p", "q"):
        (tmp_path / project / "models" / "a").mkdir(parents=True)
    recipes = {"p/one": ("../models/a", 0), "p/runs/two": ("../../models/a", 1)}
    recipes["q/one"] = ("../models/a", 2)  # the same text, and another model
    for name, (model, seed) in recipes.items():
        (tmp_path / name).mkdir(parents=True)
        recipe = {"seed": seed, "model_pool": {"models": {"a": model}}}
        (tmp_path / name / "recipe.yaml").write_text(json.dumps(recipe))
    names = [str(tmp_path / name) for name in recipes]
    assert group_by_recipe(names) == [names[:2], names[2:]]


def test_base_and_experts_come_from_the_first_run() -> None:
    first = Report({"a": {"x": 0.5}, "b": {"x": 1.0}}, Reference({"a": {"x": 0.1}}))
    again = replace(first, reference=Reference({"a": {"x": 0.9}}))
    averaged = average_seeds({"one": first, "two": again})
    assert averaged == {"one": first, "two": again}  # without recipes, runs are not grouped
