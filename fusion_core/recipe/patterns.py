"""Options that every algorithm takes: which tensors it merges, and which of them otherwise.

Patterns are globs on canonical tensor names, in which `*` matches dots too. What is done with the
tensors that are found is not known here (`fusion_core.planning.parts`).
"""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from fusion_core.errors import RecipeError
from fusion_core.recipe.depth import along, depths
from fusion_core.recipe.validation import STRICT, Options
from fusion_core.shown import close_to

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

Pattern = Annotated[str, Field(min_length=1)]
Patterns = Annotated[
    tuple[Pattern, ...],
    BeforeValidator(_listed),
    Field(min_length=1),
    WithJsonSchema(_ONE_OR_MORE),
]


class Override(Options):
    """Other options for some tensors."""

    model_config = ConfigDict(**{**STRICT, "extra": "allow"})

    match: Patterns
    """Glob patterns on tensor names: one, or a list."""

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ, not yet validated: the algorithm's own."""
        return dict(self.model_extra or {})


def _as_curves(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Curve(Override):
    """Options that change with a tensor's depth: each a list of values, first layer to last."""

    match: Patterns = ("*",)
    """Glob patterns on tensor names: one, or a list; default: all."""

    @model_validator(mode="after")
    def _are_numbers(self) -> Self:
        if not self.options:
            raise ValueError("give an option its values: {density: [0.2, 0.5, 0.8]}")
        for name, points in self.options.items():
            good = isinstance(points, list | tuple) and all(map(_is_number, points)) and points
            if not good:
                raise ValueError(f"{name} has to be a list of numbers, first layer to last")
        return self

    @property
    def corners(self) -> list[float]:
        """The depths at which values were given."""
        lengths = {len(points) for points in self.options.values()}
        return sorted({n / max(count - 1, 1) for count in lengths for n in range(count)})

    def at(self, depth: float) -> dict[str, float]:
        """Return the options' values at a depth between 0 and 1."""
        return {name: along(points, depth) for name, points in self.options.items()}


Curves = Annotated[tuple[Curve, ...], BeforeValidator(_as_curves)]


class Selection(Options):
    """Which tensors an algorithm merges, and with which options."""

    only: Patterns | None = None
    """Merge only these tensors: a glob pattern on names, or a list; the others are the base's."""
    skip: Patterns | None = None
    """Do not merge these tensors: a glob pattern on names, or a list; they are the base's."""
    overrides: tuple[Override, ...] = ()
    """Other options for some tensors: a list of {match: PATTERN, OPTION: VALUE}; first match."""
    by_depth: Curves = ()
    """Options that change from the first layer to the last: {OPTION: [VALUE, ...]}, or a list of
    these, with `match` where they are for some tensors."""

    def chosen(self, names: Collection[str]) -> list[str]:
        """Return the names that are merged, in their order.

        Raises `RecipeError` for a pattern that matches none, or if nothing is left.
        """
        only = matching(self.only, names, "algorithm.only") if self.only is not None else names
        skipped = matching(self.skip or (), names, "algorithm.skip")
        chosen = [name for name in names if name in only and name not in skipped]
        if not chosen:
            raise RecipeError(
                "algorithm.only and algorithm.skip leave no tensor to merge",
                hint="Change the patterns.",
            )
        return chosen

    def groups(self, names: Collection[str]) -> list[tuple[dict[str, Any], list[str]]]:
        """Part what is merged by what differs from the algorithm's options; with its tensors each.

        A tensor has the values of `by_depth` at its depth, and those of the first override that
        matches it before these. Raises `RecipeError` for a pattern that matches nothing that is
        merged.
        """
        chosen = self.chosen(names)
        curved = self._curved(chosen)
        overridden = self._overridden(chosen)
        found: dict[Any, tuple[dict[str, Any], list[str]]] = {}
        for name in chosen:
            curve, number = curved.get(name, {}), overridden.get(name)
            override = {} if number is None else self.overrides[number].options
            key = (number, *sorted(curve.items()))
            found.setdefault(key, ({**curve, **override}, []))[1].append(name)
        return list(found.values())

    def _overridden(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of the first override that matches a tensor."""
        found: dict[str, int] = {}
        for number, each in enumerate(self.overrides):
            for name in matching(each.match, names, f"algorithm.overrides.{number}.match"):
                found.setdefault(name, number)
        return found

    def _curved(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the values that curves give a tensor of a layer; of two, the first one's."""
        found: dict[str, dict[str, float]] = {}
        known = depths(names) if self.by_depth else {}
        for number, curve in enumerate(self.by_depth):
            option = f"algorithm.by_depth.{number}.match"
            layered = known.keys() & matching(curve.match, names, option)
            if not layered:
                raise RecipeError(
                    f"{option}: no tensor that it matches belongs to a numbered layer",
                    hint="Only names with a number, such as layers.0.mlp.weight, have a depth.",
                )
            for name in layered:
                found[name] = {**curve.at(known[name]), **found.get(name, {})}
        return found


def matching(patterns: Sequence[str], names: Collection[str], option: str) -> set[str]:
    """Return the names that a pattern matches; `option` names the patterns in errors.

    Raises `RecipeError` naming the closest names for a pattern that matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise RecipeError(
                f"{option}: no tensor is called like {pattern!r}", hint=_closest(pattern, names)
            )
        found |= matched
    return found


def _closest(pattern: str, names: Collection[str]) -> str:
    """Suggest the pattern with stars around it, or three tensors of different kinds.

    Layers that differ by a number are of one kind.
    """
    around = f"*{pattern.strip('*')}*"
    if any(fnmatchcase(name, around) for name in names):
        return f"Did you mean {around!r}? `*` matches any characters, dots too."
    kinds = {_kind(name): name for name in reversed([*names])}
    close = close_to(_kind(pattern.replace("*", "")), kinds, cutoff=0.4)
    listed = ", ".join(kinds[each] for each in close or sorted(kinds)[:3])
    return f"The closest names: {listed}. `*` matches any characters, dots too."


def _kind(name: str) -> str:
    return re.sub(r"\d+", "0", name)
