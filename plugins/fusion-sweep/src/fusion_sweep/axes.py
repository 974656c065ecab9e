"""What is swept over: options of a recipe, each with a list of values or a range.

Nothing is known here of runs. A *point* gives every axis that it has one value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import assign, load_yaml
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from random import Random

#: Values by the names of axes, which are paths in a recipe: `algorithm.scale`.
Point = Mapping[str, Any]

#: The axis of algorithms themselves.
ALGORITHM = "algorithm"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::({_NUMBER}|log))?")
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


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: in steps, or any."""

    name: str
    low: float
    high: float
    step: float | None = None
    is_log: bool = False

    @property
    def first(self) -> float:
        """The first of them."""
        return self.low

    @property
    def said(self) -> str:
        """What it is, as `--over` takes it."""
        step = "log" if self.is_log else self.step
        return f"{self.low}:{self.high}" + ("" if step is None else f":{step}")

    def grid(self) -> tuple[float, ...]:
        """Return every number; raises `RecipeError` without a step."""
        if self.step is None:
            raise RecipeError(
                f"--over {self.name}: {self.low}:{self.high} is endless, and a grid is not",
                hint=f"Give it a step, {self.low}:{self.high}:STEP, or draw: --random 20",
            )
        count = math.floor((self.high - self.low) / self.step + 1e-9)
        return tuple(self.tidy(self.low + n * self.step) for n in range(count + 1))

    def draw(self, random: Random) -> float:
        """Return one of the numbers."""
        if self.step is not None:
            return random.choice(self.grid())
        if self.is_log:
            return self.tidy(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self.tidy(random.uniform(self.low, self.high))

    def tidy(self, number: float) -> float:
        """Return a number as people write it: 0.1 + 0.2 is 0.3, whole steps make whole numbers."""
        if isinstance(self.low, int) and isinstance(self.step, int):
            return round(number)
        return float(f"{number:.9g}")


Axis = Listed | Range


def axis_of(name: str, given: Any) -> Axis:  # noqa: ANN401 - from a flag, or a list from Python
    """Read what an option is swept over: text as `--over` takes it, or a sequence of values.

    Raises `RecipeError` for what is neither, and for a range in which nothing lies.
    """
    if isinstance(given, str):
        return _range_of(name, given) or Listed(name, _listed(name, given))
    if not isinstance(given, Sequence) or not given:
        raise RecipeError(f"over {name}: {given!r} is not a list of values", hint=_HINT)
    return Listed(name, tuple(given))


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


def _listed(name: str, text: str) -> tuple[Any, ...]:
    values = load_yaml(f"[{text}]", origin=f"--over {name}")
    if not values or None in values:
        raise RecipeError(f"--over {name}={text}: a value is missing", hint=_HINT)
    return tuple(values)


def _range_of(name: str, text: str) -> Range | None:
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    low, high, step = found.groups()
    is_log = step == "log"
    made = Range(name, _number(low), _number(high), None, is_log)
    if step is not None and not is_log:
        made = Range(name, made.low, made.high, _number(step))
    nothing = made.low >= made.high or (made.step is not None and made.step <= 0)
    if nothing or (is_log and made.low <= 0):
        raise RecipeError(f"--over {name}={text}: nothing lies in this range", hint=_HINT)
    return made


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def alternatives(flag: str) -> Listed:
    """Return the axis of algorithms that a flag names: `ties,dare` or `trim+average`."""
    names = [each.strip() for each in flag.split(",")]
    return Listed(ALGORITHM, tuple(names))


def recipe_at(raw: Mapping[str, Any], point: Point, seed: int) -> dict[str, Any]:
    """Return a recipe with the options of a point, and a seed."""
    recipe: dict[str, Any] = {**raw, "seed": seed}
    for name, value in point.items():
        if name == ALGORITHM:
            stages = [_section(raw, each) for each in value.split("+")]
            recipe[ALGORITHM] = stages if len(stages) > 1 else stages[0]
        else:
            recipe = assign(recipe, _path(name, recipe), value, origin=f"--over {name}")
    return recipe


def _section(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the section of an algorithm, with the options that a recipe has for it."""
    given = raw.get(ALGORITHM)
    stages = given if isinstance(given, list) else [given]
    own = (each for each in stages if isinstance(each, Mapping) and each.get("name") == name)
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
    names = {n for axis in axes if axis.name == ALGORITHM for n in _names_in(axis)}
    stages = set(str(point.get(ALGORITHM, "")).split("+"))
    return {
        name: value
        for name, value in point.items()
        if (own := _owner(name)) not in names or own in stages
    }


def _names_in(axis: Axis) -> set[str]:
    return {name for value in axis.grid() for name in str(value).split("+")}


def _owner(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == ALGORITHM and len(parts) > 2 else None  # noqa: PLR2004 - a.b.c


def key_of(point: Point) -> str:
    """Return a point as text, the same for the same values."""
    return json.dumps(point, sort_keys=True, default=str)
