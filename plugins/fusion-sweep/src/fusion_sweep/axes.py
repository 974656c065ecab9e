"""Axes of a sweep: options of a recipe, each with a list of values or a range.

A *point* gives one value to every axis that applies to it. This module knows nothing of runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.commands import assign, load_yaml, sections_from
from fusion_core.errors import RecipeError
from fusion_sweep.ranges import Range, parse_range

if TYPE_CHECKING:
    from random import Random

#: Values by the names of axes, which are paths in a recipe: `algorithm.scale`.
Point = Mapping[str, Any]

#: The name of the axis of algorithms.
ALGORITHM = "algorithm"
#: Most values of one option in a list or in a grid.
LARGEST_AXIS = 10_000
_HINT = "Write a list, a range with a step, or one to draw from: 0.1,0.2  0:1:0.1  1e-4:1e-1:log"


@dataclass(frozen=True)
class ValueList:
    """A list of values, in order."""

    name: str
    values: tuple[Any, ...]

    @property
    def first(self) -> Any:  # noqa: ANN401 - any value of an option
        """The first value."""
        return self.values[0]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every value, since none lies between others."""
        return self.values

    @property
    def spec(self) -> list[Any]:
        """The values as JSON."""
        return list(self.values)

    def grid(self) -> tuple[Any, ...]:
        """Return every value."""
        return self.values

    def draw(self, random: Random) -> Any:  # noqa: ANN401 - any value of an option
        """Return a random value."""
        return random.choice(self.values)


Axis = ValueList | Range


def parse_axis(name: str, given: Any) -> Axis:  # noqa: ANN401 - text of a flag, or values from Python
    """Make the axis of an option from text, as `--over` takes it, or from a sequence of values.

    Raises `RecipeError` for other types, empty ranges, too long lists and NaN.
    """
    if isinstance(given, str):
        if (axis := parse_range(name, given)) is not None:
            return axis
        values = load_yaml(f"[{given}]", origin=f"--over {name}")
        if not values or None in values:
            raise RecipeError(f"--over {name}={given}: a value is missing", hint=_HINT)
        return _check_list(name, values)
    if isinstance(given, bytes) or not isinstance(given, Sequence) or not given:
        raise RecipeError(f"over {name}: expected a list of values, got {given!r}", hint=_HINT)
    return _check_list(name, given)


def _check_list(name: str, values: Sequence[Any]) -> ValueList:
    """Return a checked list of values. It is copied after the check, since it may be a `range`."""
    if len(values) > LARGEST_AXIS:
        raise RecipeError(
            f"over {name}: an option can have at most {LARGEST_AXIS:,} values, got {len(values):,}",
            hint="Give fewer values, or a range to draw from: 0:1 with --random 20.",
        )
    if any(isinstance(value, float) and math.isnan(value) for value in values):
        raise RecipeError(f"over {name}: a value is not a number (NaN)", hint=_HINT)
    return ValueList(name, tuple(values))


def parse_over_flags(flags: Sequence[str]) -> dict[str, str]:
    """Split flags `section.option=values`; raise `RecipeError` for other text and duplicates."""
    values_by_name: dict[str, str] = {}
    for flag in flags:
        name, separator, values = flag.partition("=")
        if not separator or not all(name.split(".")) or "." not in name:
            raise RecipeError(
                f"--over {flag!r}: expected OPTION=VALUES",
                hint="For example: --over algorithm.scale=0:1:0.1",
            )
        if name in values_by_name:
            raise RecipeError(f"--over {name}: given twice", hint="Give all values at once.")
        values_by_name[name] = values
    return values_by_name


def algorithm_axis(names: Sequence[str]) -> ValueList:
    """Return the axis of algorithms: names such as `ties`, or pipelines such as `trim+average`."""
    return _check_list(ALGORITHM, [name.strip() for name in names])


def fixed_values(section: object, path: str = ALGORITHM) -> dict[str, list[Any]]:
    """Return the axes of options that every algorithm shares: each has one value.

    `section` is a recipe's `algorithm` without a name, such as `{"scale": 0.5}`. Options of one
    algorithm are in a mapping under its name.
    """
    if not isinstance(section, Mapping) or not section or any("." in key for key in section):
        return {path: [section]}
    parts = (fixed_values(value, f"{path}.{key}") for key, value in section.items())
    return {name: values for part in parts for name, values in part.items()}


def recipe_for_point(raw: Mapping[str, Any], point: Point, seed: int) -> dict[str, Any]:
    """Return a recipe with the options of a point, and a seed."""
    recipe: dict[str, Any] = {**raw, "seed": seed}
    for name, value in point.items():
        if name == ALGORITHM:
            recipe = sections_from(recipe, {ALGORITHM: value.replace("+", ",")}, None)
        else:
            recipe = assign(recipe, _option_path(name, recipe), value, origin=f"--over {name}")
    return recipe


def _option_path(name: str, recipe: Mapping[str, Any]) -> list[str]:
    """Return the path of an option: `algorithm.ties.scale` is `algorithm.scale` of `ties`."""
    first, *rest = name.split(".")
    section = recipe.get(first)
    component = section.get("name") if isinstance(section, Mapping) else section
    return [first, *rest[1:]] if len(rest) > 1 and rest[0] == component else [first, *rest]


def make_point(axes: Sequence[Axis], values: Sequence[Any]) -> Point:
    """Return a point without the options of algorithms that are not the point's."""
    point = {axis.name: value for axis, value in zip(axes, values, strict=True)}
    algorithm, names = point.get(ALGORITHM, ""), algorithm_names(axes)
    return {name: value for name, value in point.items() if applies(name, algorithm, names)}


def algorithm_names(axes: Sequence[Axis]) -> set[str]:
    """Return the names of all algorithms and stages of the axis of algorithms."""
    return {
        name
        for axis in axes
        if axis.name == ALGORITHM and isinstance(axis, ValueList)
        for value in axis.values
        for name in str(value).split("+")
    }


def applies(option: str, algorithm: object, names: Collection[str]) -> bool:
    """Tell whether an option applies to an algorithm; `names` are those of all algorithms."""
    parts = option.split(".")
    owner = parts[1] if parts[0] == ALGORITHM and len(parts) > 2 else None  # noqa: PLR2004 - a.b.c
    return owner not in names or owner in str(algorithm).split("+")


def point_key(point: Point) -> str:
    """Return a point as text, the same for equal values; true is not 1."""
    text = json.dumps(point, sort_keys=True, default=str)
    return json.dumps(json.loads(text, parse_float=_parse_float))


def _parse_float(text: str) -> float:
    """Return a whole number as an integer, so that 1.0 is 1."""
    number = float(text)
    return int(number) if number.is_integer() else number
