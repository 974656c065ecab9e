"""A difference between side files: which file, how it is read, and how much it matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.aligning._models import Fact, Model, Models

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The policy, `alignment.config` or `alignment.tokenizer`, that a difference falls under.
Policy = Literal["config", "tokenizer"]

_MOST_DOUBTS = 20
_LONGEST_KEY = 80
_LONGEST_VALUE, _BEFORE_DIFFERENCE = 60, 15


class Severity(Enum):
    """What a difference means for a merge."""

    ERROR = "error"
    WARNING = "warning"
    IGNORED = "ignored"


#: Says how much a fact matters that two of the models state differently.
Judge = Callable[[Models, Model, Model], Severity]


@dataclass(frozen=True)
class Inspection:
    """A row of the table that finds its doubts in its own way."""

    policy: Policy
    #: patterns of files
    files: tuple[str, ...]
    reason: str
    find: Callable[[Models], Iterator[Doubt]]


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
class Comparison:
    """A row of the table: facts that models state, compared one by one.

    Each fact is compared with that of the first model that states it. Nothing is parsed where
    fewer than two models have such files, or where all have the same bytes.
    """

    policy: Policy
    #: patterns of files
    files: tuple[str, ...]
    #: why a difference is of this severity
    reason: str
    severity: Severity | Judge
    read: Callable[[Model], Mapping[str, Fact]]
    are_same: Callable[[Any, Any], bool] = are_equal

    def find(self, models: Models) -> Iterator[Doubt]:
        """Compare every model with those before it."""
        known: dict[str, tuple[Fact, Model]] = {}
        for model in self._distinct(models):
            doubts: list[Doubt] = []
            for key, fact in self.read(model).items():
                ours, owner = known.setdefault(key, (fact, model))
                if owner is model or self.are_same(fact.value, ours.value):
                    continue
                severity = self._severity(models, owner, model)
                if severity is not Severity.IGNORED:
                    doubts.append(difference(key, fact, ours, model, owner, severity))
            yield from most_serious(doubts, model.name)

    def _distinct(self, models: Models) -> Sequence[Model]:
        """Return the models whose files differ from the first one's, with the first; or none."""
        covered = {model: self._covered(model) for model in models.by_name.values()}
        having = [model for model, files in covered.items() if files]
        first, *others = having or [models.reference]
        differing = [
            model for model in others if not model.shares(first, covered[model] | covered[first])
        ]
        return [first, *differing] if differing else []

    def _covered(self, model: Model) -> frozenset[str]:
        return frozenset(
            name for name in model.files if any(fnmatchcase(name, glob) for glob in self.files)
        )

    def _severity(self, models: Models, ours: Model, theirs: Model) -> Severity:
        judge = self.severity
        return judge if isinstance(judge, Severity) else judge(models, ours, theirs)


def difference(  # noqa: PLR0913, PLR0917 - two facts, and who states them
    key: str, theirs: Fact, ours: Fact, model: Model, owner: Model, severity: Severity
) -> Doubt:
    """Name the file and the key, both values, shortened, and both models."""
    values = excerpts(theirs.value, ours.value)
    place = "" if theirs.file == ours.file else f" in {ours.file}"
    problem = f"{values[0]}, {measure(owner)}'s is {values[1]}{place}"
    subject = f"{theirs.file} {key[:_LONGEST_KEY]}"
    return Doubt(subject, model.name, problem, severity is Severity.ERROR)


def measure(model: Model) -> str:
    """Return what to call the model that another one is compared with."""
    return "the base" if model.name == "base" else model.name


def most_serious(doubts: Sequence[Doubt], model: str) -> Iterator[Doubt]:
    """Yield the gravest doubts about a model, and count the others."""
    ordered = sorted(doubts, key=lambda doubt: (not doubt.serious, doubt.subject))
    yield from ordered[:_MOST_DOUBTS]
    if rest := ordered[_MOST_DOUBTS:]:
        file = rest[0].subject.partition(" ")[0]
        yield Doubt(file, model, f"{len(rest)} more keys differ", rest[0].serious)


def excerpts(one: object, other: object) -> tuple[str, str]:
    """Show two values, of long ones what surrounds their first difference."""
    texts = repr(one), repr(other)
    if max(map(len, texts)) <= _LONGEST_VALUE:
        return texts
    pairs = enumerate(zip(*texts, strict=False))
    shared = next((at for at, (a, b) in pairs if a != b), min(map(len, texts)))
    start = max(0, shared - _BEFORE_DIFFERENCE)
    return _excerpt(texts[0], start), _excerpt(texts[1], start)


def _excerpt(text: str, start: int) -> str:
    stop = start + _LONGEST_VALUE
    return f"{'...' if start else ''}{text[start:stop]}{'...' if stop < len(text) else ''}"
