"""Grids: every combination of values, counted before one is made.

A grid that is too large is refused by arithmetic. Making it, or planning its runs, would not end.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from fusion_core.errors import RecipeError
from fusion_sweep.axes import ALGORITHM, LARGEST_AXIS, Listed, applies, key_of, names_in
from fusion_sweep.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_sweep.axes import Axis, Point

#: Runs of one sweep, over all axes and seeds.
LARGEST_SWEEP = 100_000
_LARGEST_WRITTEN_OUT = 10**15
_DRAW = "or look at some points of them only: --random 20, or --tpe 20"


def check_grid(axes: Sequence[Axis], seeds: int) -> None:
    """Raise `RecipeError` for a grid that is too large, before anything of it is made."""
    for axis in axes:
        if isinstance(axis, Range) and axis.count > LARGEST_AXIS:
            raise RecipeError(
                f"--over {axis.name}={axis.said}: it has {_shown(axis.count)} values, and a grid "
                f"has at most {LARGEST_AXIS:,} of one option",
                hint=f"Give a coarser step, {_DRAW}.",
            )
    total = seeds * sum(prod(map(_count, part)) for part in _by_algorithm(axes))
    if total > LARGEST_SWEEP:
        factors = [f"{axis.name} ({_shown(_count(axis))})" for axis in axes]
        factors += [f"{_shown(seeds)} seeds"] if seeds > 1 else []
        raise RecipeError(
            f"a grid over {' x '.join(factors)} has {_shown(total)} runs, and a sweep has at most "
            f"{LARGEST_SWEEP:,}",
            hint=f"Give coarser steps or fewer values, {_DRAW}.",
        )


def check_draws(kind: str, count: int, seeds: int) -> None:
    """Raise `RecipeError` for a search that looks at too many points."""
    if count * seeds > LARGEST_SWEEP:
        raise RecipeError(
            f"--{kind} {count}: with {seeds} seed{'s' * (seeds > 1)} that is "
            f"{_shown(count * seeds)} runs, and a sweep has at most {LARGEST_SWEEP:,}",
            hint="Look at fewer points.",
        )


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Return every combination of the axes' values, once each."""
    points: Iterator[Point] = (
        dict(zip((axis.name for axis in part), values, strict=True))
        for part in _by_algorithm(axes)
        for values in product(*(axis.grid() for axis in part))
    )
    return list({key_of(point): point for point in points}.values())


def _by_algorithm(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Return for each algorithm the axes that are its own or everybody's.

    The algorithm is the first of them. So options of others multiply nothing.
    """
    names = names_in(axes)
    chosen = next((axis for axis in axes if axis.name == ALGORITHM), None)
    if chosen is None:
        return [list(axes)]
    others = [axis for axis in axes if axis is not chosen]
    return [
        [Listed(ALGORITHM, (value,)), *(a for a in others if applies(a.name, value, names))]
        for value in chosen.grid()
    ]


def _count(axis: Axis) -> int:
    return len(axis.values) if isinstance(axis, Listed) else axis.count


def _shown(count: int) -> str:
    return f"{count:,}" if count < _LARGEST_WRITTEN_OUT else f"{Decimal(count):.1e}"
