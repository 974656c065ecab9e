"""Merging coefficients by expert and canonical tensor name, and the file that holds them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 1
#: The options of a search that what it found depends on, and that a file of coefficients names.
LEARNED_WITH = {"granularity", "objective", "trim", "density", "adapt_split"}


@dataclass(frozen=True)
class Coefficients:
    """One coefficient an expert and tensor.

    Keys are names, never positions, so a file still fits when a pool's order changes.
    """

    #: expert -> tensor -> coefficient
    values: Mapping[str, Mapping[str, float]]
    #: options and tasks that they were learned with; empty where that is not known
    learned: Mapping[str, Any] = field(default_factory=dict)

    def by_tensor(self, experts: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return each tensor's coefficients in the experts' order."""
        rows = [self.values[each] for each in experts]
        return {name: tuple(row[name] for row in rows) for name in rows[0]}

    def as_bytes(self) -> bytes:
        """Return the content of `coefficients.json`."""
        content = {"schema": SCHEMA, "learned": self.learned, "coefficients": self.values}
        return json.dumps(content, indent=1).encode() + b"\n"

    @classmethod
    def load(cls, path: str, *, experts: Sequence[str], names: Sequence[str]) -> Coefficients:
        """Read a `coefficients.json`.

        Raises `RecipeError` if it is none, or not of these experts and tensors.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            values = {
                expert: {name: _number(value, expert, name) for name, value in row.items()}
                for expert, row in content["coefficients"].items()
            }
            learned = dict(content.get("learned", {}))
        except _NO_COEFFICIENTS as error:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is not a coefficients file: {error}",
                hint="Give the coefficients.json of an earlier adamerging run.",
            ) from error
        _check_names(values, path, experts=set(experts), names=set(names))
        return cls(values, learned)

    def check_fits(self, path: str, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for options that give these coefficients another meaning.

        Of transformed task vectors they are not coefficients of whole ones, and a model whose
        coefficients saw test examples cannot be measured as if they had not.
        """
        decisive = ["trim", *(["density"] if options["trim"] else []), "adapt_split"]
        for name in decisive:
            if self.learned.get(name, options[name]) != options[name]:
                raise RecipeError(
                    f"algorithm.coefficients: {path!r} was learned with {name}: "
                    f"{self.learned[name]}, not with {options[name]}",
                    hint=f"Add: --set algorithm.{name}={json.dumps(self.learned[name])}",
                )
        before, now = self.learned.get("transforms", []), options.get("transforms", [])
        if self.learned and before != now:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} was learned after the transforms "
                f"{json.dumps(before)}, and here are {json.dumps(now)}",
                hint="Give the pipeline the same transforms before adamerging.",
            )


_NO_COEFFICIENTS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def _number(value: Any, expert: str, name: str) -> float:  # noqa: ANN401 - what a file holds
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value} is not a number, of {expert!r} for {name!r}")
    return float(value)


def _check_names(
    values: Mapping[str, Mapping[str, float]], path: str, *, experts: set[str], names: set[str]
) -> None:
    strange = values.keys() ^ experts
    for row in values.values():
        strange |= row.keys() ^ names
    if strange:
        listed = ", ".join(sorted(strange)[:5])
        raise RecipeError(
            f"algorithm.coefficients: {path!r} is for other models: {listed}",
            hint=f"The experts here are: {', '.join(sorted(experts))}.",
        )
