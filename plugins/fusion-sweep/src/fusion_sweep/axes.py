"""What is swept over: options of a recipe, each with a list of values or a range.

Nothing is known here of runs. A *point* gives every axis that it has one value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.commands import assign, load_yaml
from fusion_core.errors import RecipeError
from fusion_sweep.ranges import Range, range_of

if TYPE_CHECKING:
    from random import Random

#: Values by the names of axes, which are paths in a recipe: `algorithm.scale`.
Point = Mapping[str, Any]

#: The axis of algorithms themselves.
ALGORITHM = "algorithm"
#: Values of one option that are listed, or that a grid makes of a range.
LARGEST_AXIS = 10_000
_HINT = "Write a list, a range with a step, or one to draw from: 0.1,0.2  0:1:0.1  1e-4:1e-1:log"


@dataclass(frozen=True)
class Listed:
    """Some values, in their order."""

    name: str
    values: tuple[Any, ...]

    @property
    def first(self) -> Any:  # noqa: ANN401 - whatever an option takes
        """The first of them."""
        return self.values[0]

    @property
    def said(self) -> list[Any]:
        """What it is, as JSON's data."""
        return list(self.values)

    def grid(self) -> tuple[Any, ...]:
        """Return every value."""
        return self.values

    def draw(self, random: Random) -> Any:  # noqa: ANN401 - whatever an option takes
        """Return one of the values."""
        return random.choice(self.values)


Axis = Listed | Range


def axis_of(name: str, given: Any) -> Axis:  # noqa: ANN401 - from a flag, or a list from Python
    """Read what an option is swept over: text as `--over` takes it, or a sequence of values.

    Raises `RecipeError` for what is neither, for a range in which nothing lies, and for a list that
    is too long or has a value that is not a number.
    """
    if isinstance(given, str):
        return range_of(name, given) or _listed(name, _values(name, given))
    if isinstance(given, bytes) or not isinstance(given, Sequence) or not given:
        raise RecipeError(f"over {name}: {given!r} is not a list of values", hint=_HINT)
    return _listed(name, given)


def axes_of(flags: Sequence[str]) -> dict[str, str]:
    """Split flags `section.option=values`; raises `RecipeError` for others, and for one twice."""
    found: dict[str, str] = {}
    for flag in flags:
        name, separator, values = flag.partition("=")
        if not separator or not all(name.split(".")) or "." not in name:
            raise RecipeError(
                f"--over {flag!r} names no option", hint="Write --over algorithm.scale=0:1:0.1"
            )
        if name in found:
            raise RecipeError(f"--over {name}: given twice", hint="Give all values at once.")
        found[name] = values
    return found


def _values(name: str, text: str) -> Sequence[Any]:
    values = load_yaml(f"[{text}]", origin=f"--over {name}")
    if not values or None in values:
        raise RecipeError(f"--over {name}={text}: a value is missing", hint=_HINT)
    return tuple(values)


def _listed(name: str, values: Sequence[Any]) -> Listed:
    """Return a list of values, which is looked at before it is copied: it may be a `range`."""
    if len(values) > LARGEST_AXIS:
        raise RecipeError(
            f"over {name}: {len(values):,} values, and an option has at most {LARGEST_AXIS:,}",
            hint="Name fewer, or a range to draw from: 0:1 with --random 20.",
        )
    if any(isinstance(value, float) and math.isnan(value) for value in values):
        raise RecipeError(f"over {name}: a value is not a number (NaN)", hint=_HINT)
    return Listed(name, tuple(values))


def alternatives(flag: str) -> Listed:
    """Return the axis of algorithms that a flag names: `ties,dare` or `trim+average`."""
    names = [part.strip() for part in flag.split(",")]
    return _listed(ALGORITHM, names)


def recipe_at(raw: Mapping[str, Any], point: Point, seed: int) -> dict[str, Any]:
    """Return a recipe with the options of a point, and a seed."""
    recipe: dict[str, Any] = {**raw, "seed": seed}
    for name, value in point.items():
        if name == ALGORITHM:
            stages = [_section(raw, part) for part in value.split("+")]
            recipe[ALGORITHM] = stages if len(stages) > 1 else stages[0]
        else:
            recipe = assign(recipe, _path(name, recipe), value, origin=f"--over {name}")
    return recipe


def _section(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the section of an algorithm, with the options that a recipe has for it."""
    given = raw.get(ALGORITHM)
    stages = given if isinstance(given, list) else [given]
    own = (stage for stage in stages if isinstance(stage, Mapping) and stage.get("name") == name)
    return {**next(own, {}), "name": name}


def _path(name: str, recipe: Mapping[str, Any]) -> list[str]:
    """Return where an option lies: `algorithm.ties.scale` is `algorithm.scale` of `ties`."""
    first, *rest = name.split(".")
    section = recipe.get(first)
    alone = section.get("name") if isinstance(section, Mapping) else section
    return [first, *rest[1:]] if len(rest) > 1 and rest[0] == alone else [first, *rest]


def points_of(axes: Sequence[Axis], values: Sequence[Any]) -> Point:
    """Return a point: of options that are some algorithm's own, only those of the point's."""
    point = {axis.name: value for axis, value in zip(axes, values, strict=True)}
    algorithm, names = point.get(ALGORITHM, ""), names_in(axes)
    return {name: value for name, value in point.items() if applies(name, algorithm, names)}


def names_in(axes: Sequence[Axis]) -> set[str]:
    """Return the names of all algorithms and stages that are tried."""
    given = (axis.values for axis in axes if axis.name == ALGORITHM and isinstance(axis, Listed))
    return {name for values in given for value in values for name in str(value).split("+")}


def applies(option: str, algorithm: object, names: Collection[str]) -> bool:
    """Tell whether an option is of an algorithm, or of any."""
    owner = _owner(option)
    return owner not in names or owner in str(algorithm).split("+")


def _owner(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == ALGORITHM and len(parts) > 2 else None  # noqa: PLR2004 - a.b.c


def key_of(point: Point) -> str:
    """Return a point as text, the same for the same values."""
    return json.dumps(point, sort_keys=True, default=str)
