"""Options that every algorithm takes: which tensors it merges, and which of them otherwise.

Patterns are globs on canonical tensor names, in which `*` matches dots too. What is done with the
tensors that are found is not known here (`fusion_core.planning.selection`).
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from fusion_core.errors import RecipeError
from fusion_core.recipe.validation import STRICT, Options
from fusion_core.shown import close_to

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


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


class Selection(Options):
    """Which tensors an algorithm merges, and with which options."""

    only: Patterns | None = None
    """Merge only these tensors: a glob pattern on names, or a list; the others are the base's."""
    skip: Patterns | None = None
    """Do not merge these tensors: a glob pattern on names, or a list; they are the base's."""
    overrides: tuple[Override, ...] = ()
    """Other options for some tensors: a list of {match: PATTERN, OPTION: VALUE}; first match."""

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

    def groups(self, names: Collection[str]) -> Mapping[int | None, list[str]]:
        """Part what is merged by override: its number, or None -> the names that it is for.

        A tensor belongs to the first override that matches it. Raises `RecipeError` for a pattern
        that matches nothing that is merged.
        """
        chosen = self.chosen(names)
        found: dict[int | None, list[str]] = {}
        matched = [
            matching(each.match, chosen, f"algorithm.overrides.{number}.match")
            for number, each in enumerate(self.overrides)
        ]
        for name in chosen:
            first = next((n for n, those in enumerate(matched) if name in those), None)
            found.setdefault(first, []).append(name)
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
