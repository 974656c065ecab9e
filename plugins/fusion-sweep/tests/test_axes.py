"""Ranges and grids: counted by arithmetic, and refused before anything of them is made."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fusion_core.errors import RecipeError
from fusion_sweep import Search, sweep
from fusion_sweep.axes import alternatives, axis_of
from fusion_sweep.grids import grid
from fusion_sweep.ranges import Range

SCALE = "algorithm.scale"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("0:1e9:1e-9", r"algorithm\.scale=.* has 1\.0e\+18 values.*at most 10,000"),
        ("0:1:1e-300", r"has 1\.0e\+300 values"),
        ("0:10000:1", "has 10,001 values"),
        (range(10**9), "1,000,000,000 values"),
        ("1e16:10000000000000010:1", r"the step 1 is lost in numbers as large as 1e\+16"),
        ("0:1:0", "the step is 0"),
        ("0:1:1e-400", "the step is 0"),
        ("0:1:-0.1", "steps are positive"),
        ("1:0:-0.1", "the lower end comes first"),
        ("-1:1:log", "begins above 0"),
        ("0:1:log", "begins above 0"),
        ("nan:1:0.1", "expected finite numbers"),
        ("0:inf:0.1", "expected finite numbers"),
        ("0:1e999", "expected finite numbers"),
        ("-1e308:1e308", "too far apart"),
        ("0:1:0.1:2", "expected finite numbers"),
        (".nan,0.1", "not a number"),
    ],
)
def test_a_range_that_is_endless_or_empty_is_refused(values: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        sweep({}, over={SCALE: values})


@pytest.mark.parametrize(
    ("axes", "seeds", "search", "said"),
    [
        (12, 1, Search(), r"algorithm\.o0 \(10\) x .* has 1,000,000,000,000 runs"),
        (4, 20, Search(), "x 20 seeds has 200,000 runs"),
        (1, 1, Search("random", 10**9), "1,000,000,000 runs"),
    ],
)
def test_too_many_runs_are_refused_before_any_is_planned(
    axes: int, seeds: int, search: Search, said: str
) -> None:
    over = {f"algorithm.o{n}": "0:9:1" for n in range(axes)}
    with pytest.raises(RecipeError, match=said):
        sweep({}, over=over, seeds=seeds, search=search)


def test_whole_numbers_are_told_apart_however_large() -> None:
    axis = axis_of(SCALE, "10000000000000000:10000000000000010:1")
    assert len(set(axis.grid())) == 11


def test_options_of_other_algorithms_multiply_nothing() -> None:
    names = [f"a{n}" for n in range(9)]
    axes = [alternatives(",".join(names))]
    axes += [axis_of(f"algorithm.{name}.x", "0:9:1") for name in names]  # type: ignore[misc]
    Search().check_size(axes, seeds=1)
    assert len(grid(axes)) == 90


def test_drawing_from_steps_makes_no_grid() -> None:
    axis = axis_of(SCALE, "0:1000000000:1")
    assert isinstance(axis, Range)
    assert axis.draw(Random(3)) == Random(3).choice(range(10**9 + 1))
