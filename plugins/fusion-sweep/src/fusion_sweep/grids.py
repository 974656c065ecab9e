"""Grids: every combination of values.

A grid is counted by arithmetic before it is made, because making a too large one would never end.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from fusion_core.errors import RecipeError
from fusion_sweep.axes import (
    ALGORITHM,
    LARGEST_AXIS,
    ValueList,
    algorithm_names,
    applies,
    point_key,
)
from fusion_sweep.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_sweep.axes import Axis, Point

#: Most runs of one sweep, over all axes and seeds.
LARGEST_SWEEP = 100_000
_LARGEST_WRITTEN_OUT = 10**15
_DRAW = "or try only some points: --random 20, or --tpe 20"


def check_grid(axes: Sequence[Axis], seeds: int) -> None:
    """Raise `RecipeError` for a too large grid, before any of it is made."""
    for axis in axes:
        if isinstance(axis, Range) and axis.count > LARGEST_AXIS:
            raise RecipeError(
                f"--over {axis.name}={axis.spec}: a grid can have at most {LARGEST_AXIS:,} values "
                f"of one option, got {_format_count(axis.count)}",
                hint=f"Give a larger step, {_DRAW}.",
            )
    total = seeds * sum(prod(map(_count, part)) for part in _axes_by_algorithm(axes))
    if total > LARGEST_SWEEP:
        factors = [f"{axis.name} ({_format_count(_count(axis))})" for axis in axes]
        factors += [f"{_format_count(seeds)} seeds"] if seeds > 1 else []
        raise RecipeError(
            f"a sweep can have at most {LARGEST_SWEEP:,} runs, and the grid of "
            f"{' x '.join(factors)} has {_format_count(total)}",
            hint=f"Give larger steps or fewer values, {_DRAW}.",
        )


def check_draws(kind: str, count: int, seeds: int) -> None:
    """Raise `RecipeError` for a search with too many points."""
    if count * seeds > LARGEST_SWEEP:
        raise RecipeError(
            f"--{kind} {count}: a sweep can have at most {LARGEST_SWEEP:,} runs, and with {seeds} "
            f"seed{'s' * (seeds > 1)} this has {_format_count(count * seeds)}",
            hint="Try fewer points.",
        )


def make_grid(axes: Sequence[Axis]) -> list[Point]:
    """Return every combination of the axes' values, without duplicates."""
    points: Iterator[Point] = (
        dict(zip((axis.name for axis in part), values, strict=True))
        for part in _axes_by_algorithm(axes)
        for values in product(*(axis.grid() for axis in part))
    )
    return list({point_key(point): point for point in points}.values())


def make_extremes(axes: Sequence[Axis]) -> list[Point]:
    """Return points that together have both ends of each range and all values of each list."""
    points: list[Point] = []
    for part in _axes_by_algorithm(axes):
        ends = [(axis.name, axis.ends) for axis in part]
        length = max((len(values) for _, values in ends), default=0)
        points += [
            {name: values[min(number, len(values) - 1)] for name, values in ends}
            for number in range(length)
        ]
    return points


def _axes_by_algorithm(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Return the axes that apply to each algorithm, its own axis first.

    So the options of one algorithm do not multiply the grids of the others.
    """
    names = algorithm_names(axes)
    algorithms = next((axis for axis in axes if axis.name == ALGORITHM), None)
    if algorithms is None:
        return [list(axes)]
    others = [axis for axis in axes if axis is not algorithms]
    return [
        [
            ValueList(ALGORITHM, (value,)),
            *(axis for axis in others if applies(axis.name, value, names)),
        ]
        for value in algorithms.grid()
    ]


def _count(axis: Axis) -> int:
    return len(axis.values) if isinstance(axis, ValueList) else axis.count


def _format_count(count: int) -> str:
    return f"{count:,}" if count < _LARGEST_WRITTEN_OUT else f"{Decimal(count):.1e}"
