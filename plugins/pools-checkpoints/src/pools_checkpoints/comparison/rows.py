"""Rows of the table of side files: how a file is compared, and how much a difference matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from fusion_core.weights import Difference
from pools_checkpoints.comparison.differences import contrast, most_serious
from pools_checkpoints.comparison.models import Fact, Model, Models

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The policy, `alignment.config` or `alignment.tokenizer`, that judges a difference.
Topic = Literal["config", "tokenizer"]

_LONGEST_KEY = 80


class Severity(Enum):
    """The effect of a difference on a merge."""

    ERROR = "error"
    WARNING = "warning"
    IGNORED = "ignored"


#: Says how much it matters that a model states another fact than the model before it.
Judge = Callable[[Models, Model, Model], Severity]


def are_equal(one: Any, other: Any) -> bool:  # noqa: ANN401 - JSON
    """Compare two values of JSON, floats up to rounding."""
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        both_nan = numbers and math.isnan(one) and math.isnan(other)
        return numbers and (both_nan or math.isclose(one, other, rel_tol=1e-6))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return bool(one == other)


@dataclass(frozen=True)
class Inspection:
    """A row of the table that finds differences in its own way."""

    topic: Topic
    #: patterns of files
    files: tuple[str, ...]
    find: Callable[[Models], Iterator[Difference]]


@dataclass(frozen=True)
class Comparison:
    """A row of the table that compares facts which models state, one by one.

    Each fact is compared with that of the first model that states it. If fewer than two models have
    such files, or all have the same bytes, nothing is parsed.
    """

    topic: Topic
    #: patterns of files
    files: tuple[str, ...]
    severity: Severity | Judge
    read: Callable[[Model], Mapping[str, Fact]]
    are_same: Callable[[Any, Any], bool] = are_equal

    def find(self, models: Models) -> Iterator[Difference]:
        """Compare every model with those before it."""
        known: dict[str, tuple[Fact, Model]] = {}
        for model in self._distinct(models):
            differences: list[Difference] = []
            for key, fact in self.read(model).items():
                first_fact, owner = known.setdefault(key, (fact, model))
                if owner is model or self.are_same(fact.value, first_fact.value):
                    continue
                severity = self.severity
                if not isinstance(severity, Severity):
                    severity = severity(models, owner, model)
                if severity is Severity.IGNORED:
                    continue
                subject = f"{fact.file} {key[:_LONGEST_KEY]}"
                problem = contrast(fact.value, first_fact.value, owner.label)
                if fact.file != first_fact.file:
                    problem += f" in {first_fact.file}"
                is_serious = severity is Severity.ERROR
                differences.append(Difference(subject, model.name, problem, is_serious=is_serious))
            yield from most_serious(differences, model.name)

    def _distinct(self, models: Models) -> Sequence[Model]:
        """Return the first model with such files and those whose files differ, or none."""
        files = {
            model: {
                name for name in model.files if any(fnmatchcase(name, glob) for glob in self.files)
            }
            for model in models.by_name.values()
        }
        first, *others = [model for model in files if files[model]] or [models.reference]
        differing = [
            model for model in others if not model.shares(first, files[model] | files[first])
        ]
        return [first, *differing] if differing else []
