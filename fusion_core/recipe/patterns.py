"""Options of every algorithm: which tensors it merges, and which of them with other options.

Patterns are globs on canonical tensor names, in which `*` matches dots too. This module does not
know what happens to the selected tensors (`fusion_core.planning.parts` does).
"""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from fusion_core.errors import RecipeError
from fusion_core.formatting import similar_names
from fusion_core.recipe.depth import depths_of, interpolate, is_before_layers, layers_of
from fusion_core.recipe.validation import STRICT, Options

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

Pattern = Annotated[str, Field(min_length=1)]
Patterns = Annotated[
    tuple[Pattern, ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema(_ONE_OR_MORE),
]


class Override(Options):
    """Other options for some tensors."""

    model_config = ConfigDict(**{**STRICT, "extra": "allow"})

    match: Patterns
    """One glob pattern on tensor names, or a list of them."""
    unmatched: Literal["error", "warn"] = "error"
    """Refuse patterns that match no tensor, or warn of them."""

    def select(self, names: Collection[str], option: str, model: Collection[str]) -> set[str]:
        """Return the names that match; `option` and `model` are those of `select_names`."""
        if self.unmatched == "error":
            return select_names(self.match, names, option, model)
        return {name for name in names if any(fnmatchcase(name, glob) for glob in self.match)}

    @property
    def options(self) -> dict[str, Any]:
        """The algorithm's options that differ, not yet validated."""
        return dict(self.model_extra or {})


class Curve(Override):
    """Options that change with a tensor's depth. Each is a list of values, first layer to last.

    A number is the same value in every layer. An option with one value per expert is a mapping of
    lists and numbers.
    """

    match: Patterns = ("*",)
    """One glob pattern on tensor names, or a list of them; default: all tensors."""
    layers: tuple[Annotated[int, Field(ge=0)], int] | None = None
    """Only the layers from the first number up to, but not including, the second. The values then
    run from the first of them to the last."""
    outside: Literal["none", "before", "after", "all"] = "none"
    """Also give the first value to tensors outside of the layers: those before the layers
    (embeddings), those after them (final norm, head), or all."""

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if not self.options:
            raise ValueError("expected an option with its values: {density: [0.2, 0.5, 0.8]}")
        for name, values in self.options.items():
            by_expert = values.values() if isinstance(values, dict) and values else [values]
            if not all(map(_is_curve, by_expert)):
                raise ValueError(
                    f"expected {name} to be a list of numbers, first layer to last, such as "
                    f"{{{name}: [0.2, 0.5]}}, or a mapping of experts to lists or numbers, such "
                    f"as {{{name}: {{math: [0.2, 0.5], code: 0.3}}}}"
                )
        if self.layers is not None and self.layers[0] >= self.layers[1]:
            raise ValueError(
                f"layers {list(self.layers)} selects none: the second number is excluded"
            )
        return self

    @property
    def names_experts(self) -> bool:
        """Whether it has values of single experts."""
        return any(isinstance(values, dict) for values in self.options.values())

    @property
    def corners(self) -> list[float]:
        """The depths of the given values."""
        curves = chain.from_iterable(
            values.values() if isinstance(values, dict) else [values]
            for values in self.options.values()
        )
        lengths = {len(_points_of(curve)) for curve in curves}
        return sorted({n / max(count - 1, 1) for count in lengths for n in range(count)})

    def at(self, depth: float) -> dict[str, Any]:
        """Return the options' values at a depth between 0 and 1."""
        return {
            name: {
                expert: interpolate(_points_of(curve), depth) for expert, curve in values.items()
            }
            if isinstance(values, dict)
            else interpolate(_points_of(values), depth)
            for name, values in self.options.items()
        }

    def depths(
        self,
        matched: Collection[str],
        stacks: Mapping[str, Mapping[int, Sequence[str]]],
        option: str,
    ) -> dict[str, float]:
        """Return the depths of the matched tensors that the curve covers.

        `stacks` are the model's layers. Raises `RecipeError` if no tensor has a depth.
        """
        layered = chain.from_iterable(chain(*layers.values()) for layers in stacks.values())
        unlayered = {*matched}.difference(layered)
        if self.layers and not any(self.layers[1] - 1 in layers for layers in stacks.values()):
            raise RecipeError(
                f"{option.removesuffix('match')}layers: there is no layer {self.layers[1] - 1}",
                hint="Layers are numbered from 0, and the second number is excluded.",
            )
        depth_of = depths_of(stacks, self.layers)
        covered = {name: depth for name, depth in depth_of.items() if name in matched}
        for name in unlayered:
            side = "before" if is_before_layers(name) else "after"
            if self.outside in {side, "all"}:
                covered[name] = 0.0
        if not covered and self.unmatched == "error":
            wanted = "belongs to a numbered layer"
            if self.layers and len(unlayered) < len(matched):
                wanted = f"belongs to the layers from {self.layers[0]} to {self.layers[1] - 1}"
            elif self.outside in {"before", "after"}:
                wanted = f"comes {self.outside} the layers"
            raise RecipeError(
                f"{option}: no matching tensor {wanted}",
                hint="Only names with a number, such as layers.0.mlp.weight, have a depth.",
            )
        return covered


def _is_curve(curve: object) -> bool:
    if isinstance(curve, list | tuple):
        return bool(curve) and all(map(_is_number, curve))
    return _is_number(curve)


def _points_of(curve: float | Sequence[float]) -> Sequence[float]:
    """Return the values of a curve from the first layer to the last; one if it is a number."""
    return [curve] if isinstance(curve, int | float) else curve


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_one(value: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
    """Return a list of mappings, of which one may be given alone."""
    return [value] if isinstance(value, dict) else value


def _list_curves(value: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
    """Return a list of curves; raise `ValueError` for values without the option's name."""
    if isinstance(value, list | tuple) and any(map(_is_curve, value)):
        raise ValueError("expected the option that has these values: {density: [0.2, 0.5]}")
    return _list_one(value)


Overrides = Annotated[tuple[Override, ...], BeforeValidator(_list_one)]
Curves = Annotated[tuple[Curve, ...], BeforeValidator(_list_curves)]


class Selection(Options):
    """The tensors that an algorithm merges, and the options for each of them."""

    only: Patterns | None = None
    """Merge only the tensors whose names match: a glob pattern, or a list. The others are copied
    from the base."""
    skip: Patterns | None = None
    """Do not merge the tensors whose names match: a glob pattern, or a list. They are copied from
    the base."""
    overrides: Overrides = ()
    """Other options for some tensors: {match: PATTERN, OPTION: VALUE}, or a list of these. The
    first entry that matches a tensor applies."""
    by_depth: Curves = ()
    """Options that change from the first layer to the last: {OPTION: [VALUE, ...]}, per expert
    {OPTION: {EXPERT: [VALUE, ...]}}, or a list of these. Add `match` or `layers` to restrict one to
    some tensors."""

    def chosen(self, names: Collection[str], model: Collection[str] = ()) -> list[str]:
        """Return the names of the tensors to merge, in their order.

        `model` are the names of all tensors, also of those that are not offered to the algorithm.
        Raises `RecipeError` for a pattern that matches none, or if no tensor is left.
        """
        only = {*names}
        if self.only is not None:
            only = select_names(self.only, names, "algorithm.only", model)
        skipped = select_names(self.skip or (), names, "algorithm.skip", model)
        chosen = [name for name in names if name in only and name not in skipped]
        if not chosen:
            raise RecipeError(
                "algorithm.only and algorithm.skip leave no tensor to merge",
                hint="Change the patterns.",
            )
        return chosen

    def groups(
        self,
        names: Collection[str],
        model: Collection[str],
        plain: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> list[tuple[dict[str, Any], list[str]]]:
        """Group the tensors to merge by the options that differ from the algorithm's own.

        The layers of all tensors of the `model` count for `by_depth`. An expert that no curve of an
        option names keeps its `plain` value of this option. The first matching override takes
        precedence over `by_depth`. Raises `RecipeError` for a pattern that matches no merged
        tensor.
        """
        chosen = self.chosen(names, model)
        curve_values = self._curve_values(chosen, model)
        override_numbers = self._override_numbers(chosen, model)
        groups: dict[Any, tuple[dict[str, Any], list[str]]] = {}
        for name in chosen:
            values, number = curve_values.get(name, {}), override_numbers.get(name)
            override = {} if number is None else self.overrides[number].options
            complete = {
                option: {**plain.get(option, {}), **value} if isinstance(value, dict) else value
                for option, value in values.items()
            }
            options = {**complete, **override}
            groups.setdefault((number, _frozen(options)), (options, []))[1].append(name)
        return list(groups.values())

    def find_unmatched(self, names: Collection[str]) -> Iterator[str]:
        """Yield a warning for every pattern that may match no tensor, and matches none."""
        for option, entries in (("overrides", self.overrides), ("by_depth", self.by_depth)):
            lenient = (entry.match for entry in entries if entry.unmatched == "warn")
            for pattern in dict.fromkeys(chain.from_iterable(lenient)):
                if not any(fnmatchcase(name, pattern) for name in names):
                    yield f"algorithm.{option}: no tensor matches {pattern!r}"

    def _override_numbers(self, names: Sequence[str], model: Collection[str]) -> dict[str, int]:
        """Return the number of the first override that matches each tensor."""
        numbers: dict[str, int] = {}
        for number, override in enumerate(self.overrides):
            for name in override.select(names, f"algorithm.overrides.{number}.match", model):
                numbers.setdefault(name, number)
        return numbers

    def _curve_values(
        self, names: Sequence[str], model: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Return each tensor's values on the curves, among the layers of the whole model.

        The first curve of an option wins, or of one expert's value of an option.
        """
        values: dict[str, dict[str, Any]] = {}
        stacks = layers_of(model) if self.by_depth else {}
        for number, curve in enumerate(self.by_depth):
            option = f"algorithm.by_depth.{number}.match"
            matched = curve.select(names, option, model)
            for name, depth in curve.depths(matched, stacks, option).items():
                earlier = values.setdefault(name, {})
                for key, value in curve.at(depth).items():
                    known = earlier.get(key, {} if isinstance(value, dict) else None)
                    if isinstance(value, dict) and isinstance(known, dict):
                        earlier[key] = {**value, **known}
                    else:
                        earlier.setdefault(key, value)
        return values


def _frozen(value: Any) -> Any:  # noqa: ANN401 - an option's value
    """Return a value that can be a key: equal for equal values, 1 and 1.0 among them."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def select_names(
    patterns: Sequence[str], names: Collection[str], option: str, model: Collection[str] = ()
) -> set[str]:
    """Return the names that any pattern matches. `option` names the patterns in errors.

    Raises `RecipeError` for a pattern that matches none. The hint names the closest names, or says
    that the pattern matches only other tensors of the `model`.
    """
    matches: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched and any(fnmatchcase(name, pattern) for name in model):
            raise RecipeError(
                f"{option}: {pattern!r} matches only tensors that are not merged",
                hint="The options only and skip, or the model pool, leave them out of the merge.",
            )
        if not matched:
            raise RecipeError(
                f"{option}: no tensor matches {pattern!r}", hint=_closest(pattern, names)
            )
        matches |= matched
    return matches


def _closest(pattern: str, names: Collection[str]) -> str:
    """Suggest the pattern with stars around it, or up to three tensors with similar parts.

    Layers that differ only by number count once.
    """
    around = f"*{pattern.strip('*')}*"
    if any(fnmatchcase(name, around) for name in names):
        return f"Did you mean {around!r}? `*` matches any characters, dots too."
    kinds = {re.sub(r"\d+", "0", name): name for name in reversed([*names])}
    wanted = re.sub(r"\d+", "0", pattern.replace("*", "")).strip(".")
    count = wanted.count(".") + 1
    windows = {}  # a tensor for each sequence of so many parts
    for kind, name in kinds.items():
        parts = kind.split(".")
        for start in range(max(len(parts) - count, 0) + 1):
            windows[".".join(parts[start : start + count])] = name
    close = [windows[window] for window in similar_names(wanted, windows)]
    shown = close or [kinds[kind] for kind in sorted(kinds)[:3]]
    return (
        f"The closest names: {', '.join(dict.fromkeys(shown))}. `*` matches any characters, dots "
        "too."
    )
