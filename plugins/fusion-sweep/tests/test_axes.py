"""Ranges and grids are counted by arithmetic, and too large ones are refused at once."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fusion_core.errors import RecipeError
from fusion_sweep import Search, sweep
from fusion_sweep.axes import algorithm_axis, fixed_values, parse_axis
from fusion_sweep.grids import make_extremes, make_grid
from fusion_sweep.ranges import Range

SCALE = "algorithm.scale"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("0:1e9:1e-9", r"algorithm\.scale=.* at most 10,000 values of one option, got 1\.0e\+18"),
        ("0:1:1e-300", r"got 1\.0e\+300"),
        ("0:10000:1", "got 10,001"),
        (range(10**9), "at most 10,000 values, got 1,000,000,000"),
        ("1e16:10000000000000010:1", r"the step 1 is too small for numbers as large as 1e\+16"),
        ("0:1:0", "the step is 0"),
        ("0:1:1e-400", "the step is 0"),
        ("0:1:-0.1", "the step must be positive"),
        ("1:0:-0.1", "the lower end must come first"),
        ("-1:1:log", "must begin above 0"),
        ("0:1:log", "must begin above 0"),
        ("nan:1:0.1", "expected finite numbers"),
        ("0:inf:0.1", "expected finite numbers"),
        ("0:1e999", "expected finite numbers"),
        ("-1e308:1e308", "too far apart"),
        ("0:1:0.1:2", "expected finite numbers"),
        (".nan,0.1", "not a number"),
    ],
)
def test_too_large_empty_and_invalid_ranges_are_refused(values: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sweep({}, over={SCALE: values})


@pytest.mark.parametrize(
    ("axes", "seeds", "search", "message"),
    [
        (12, 1, Search(), r"algorithm\.o0 \(10\) x .* has 1,000,000,000,000"),
        (4, 20, Search(), "x 20 seeds has 200,000"),
        (1, 1, Search("random", 10**9), "this has 1,000,000,000"),
    ],
)
def test_too_many_runs_are_refused_before_any_is_planned(
    axes: int, seeds: int, search: Search, message: str
) -> None:
    over = {f"algorithm.o{n}": "0:9:1" for n in range(axes)}
    with pytest.raises(RecipeError, match=message):
        sweep({}, over=over, seeds=seeds, search=search)


def test_options_of_all_algorithms_are_axes_with_one_value() -> None:
    section = {"scale": None, "values": [1, 2], "ties": {"density": 0.5, "weights": {}}}
    assert fixed_values(section) == {
        "algorithm.scale": [None],
        "algorithm.values": [[1, 2]],
        "algorithm.ties.density": [0.5],
        "algorithm.ties.weights": [{}],
    }


def test_large_whole_numbers_stay_distinct() -> None:
    axis = parse_axis(SCALE, "10000000000000000:10000000000000010:1")
    assert len(set(axis.grid())) == 11


def test_options_of_one_algorithm_do_not_multiply_the_others_grids() -> None:
    names = [f"a{n}" for n in range(9)]
    axes = [algorithm_axis(names)]
    axes += [parse_axis(f"algorithm.{name}.x", "0:9:1") for name in names]  # type: ignore[misc]
    Search().check_size(axes, seeds=1)
    assert len(make_grid(axes)) == 90


def test_equal_numbers_are_one_point() -> None:
    scales = [point[SCALE] for point in make_grid([parse_axis(SCALE, "1,1.0,true,1.5,[2],[2.0]")])]
    assert [str(scale) for scale in scales] == ["1.0", "True", "1.5", "[2.0]"]


def test_extremes_are_ends_of_ranges_and_values_of_lists() -> None:
    axes = [
        algorithm_axis(["a", "b"]),
        parse_axis("algorithm.a.x", "0:1:0.3"),
        parse_axis("algorithm.y", "0.1:1:log"),
        parse_axis("algorithm.z", "1,2,3"),
    ]
    columns = {(p["algorithm"], name, p[name]) for p in make_extremes(axes) for name in p}
    assert {one for one in columns if one[0] == "a" and one[1] != "algorithm"} == {
        *(("a", "algorithm.a.x", value) for value in (0, 0.9)),
        *(("a", "algorithm.y", value) for value in (0.1, 1)),
        *(("a", "algorithm.z", value) for value in (1, 2, 3)),
    }
    assert not any(one[:2] == ("b", "algorithm.a.x") for one in columns)


def test_drawing_from_steps_does_not_make_the_grid() -> None:
    axis = parse_axis(SCALE, "0:1000000000:1")
    assert isinstance(axis, Range)
    assert axis.draw(Random(3)) == Random(3).choice(range(10**9 + 1))
