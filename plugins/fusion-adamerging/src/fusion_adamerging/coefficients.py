"""Merging coefficients by expert and canonical tensor name, and the file that holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 1


@dataclass(frozen=True)
class Coefficients:
    """One coefficient an expert and tensor; `tensors` leaves out those that have the `rest`.

    Keys are names, never positions, so a file still fits when a pool's order changes.
    """

    #: each expert's coefficient for tensors that `tensors` does not name
    rest: Mapping[str, float]
    #: expert -> tensor -> coefficient
    tensors: Mapping[str, Mapping[str, float]]

    def by_tensor(
        self, names: Sequence[str], experts: Sequence[str]
    ) -> dict[str, tuple[float, ...]]:
        """Return each tensor's coefficients in the experts' order."""
        return {
            name: tuple(self.tensors.get(each, {}).get(name, self.rest[each]) for each in experts)
            for name in names
        }

    def as_json(self) -> dict[str, Any]:
        """Return the content of `coefficients.json`."""
        return {"schema": SCHEMA, "rest": self.rest, "tensors": self.tensors}

    @classmethod
    def load(cls, path: str, *, experts: Sequence[str], names: Sequence[str]) -> Coefficients:
        """Read a `coefficients.json`.

        Raises `RecipeError` if it is none, or not of these experts and tensors.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(
                {expert: float(value) for expert, value in content["rest"].items()},
                {
                    expert: {name: float(value) for name, value in values.items()}
                    for expert, values in content["tensors"].items()
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"algorithm.coefficients: {path!r} is no coefficients file: {error}",
                hint="Give the coefficients.json of an earlier adamerging run.",
            ) from error
        _check(found, path, experts=set(experts), names=set(names))
        return found


def _check(found: Coefficients, path: str, *, experts: set[str], names: set[str]) -> None:
    strange = (found.rest.keys() ^ experts) | (found.tensors.keys() - experts)
    strange |= {name for values in found.tensors.values() for name in values} - names
    if strange:
        listed = ", ".join(sorted(strange)[:5])
        raise RecipeError(
            f"algorithm.coefficients: {path!r} is for other models: {listed}",
            hint=f"The experts here are: {', '.join(sorted(experts))}.",
        )
