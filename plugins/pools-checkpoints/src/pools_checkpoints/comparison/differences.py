"""Differences in words: which of them are shown, and how two values are contrasted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights import Difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MOST_ROWS = 20
_LONGEST_VALUE, _SHARED_PREFIX = 60, 15


def most_serious(differences: Iterable[Difference], model: str) -> Iterator[Difference]:
    """Yield the most serious differences of a model, and count the others."""
    ordered = sorted(differences, key=lambda row: (not row.is_serious, row.subject))
    yield from ordered[:_MOST_ROWS]
    if rest := ordered[_MOST_ROWS:]:
        file = rest[0].subject.partition(" ")[0]
        problem = f"{len(rest)} more keys differ"
        yield Difference(file, model, problem, is_serious=rest[0].is_serious)


def contrast(value: object, first: object, label: str) -> str:
    """Say how a value differs from the first one, which the model `label` has."""
    excerpt, first_excerpt = _excerpts(value, first)
    return f"{excerpt}, {label}'s is {first_excerpt}"


def _excerpts(one: object, other: object) -> tuple[str, str]:
    """Format two values; of long ones, show the surroundings of their first difference."""
    texts = repr(one), repr(other)
    if max(map(len, texts)) <= _LONGEST_VALUE:
        return texts
    pairs = enumerate(zip(*texts, strict=False))
    shared = next((index for index, (a, b) in pairs if a != b), min(map(len, texts)))
    start = max(0, shared - _SHARED_PREFIX)
    stop = start + _LONGEST_VALUE
    one_excerpt, other_excerpt = (
        f"{'...' if start else ''}{text[start:stop]}{'...' if stop < len(text) else ''}"
        for text in texts
    )
    return one_excerpt, other_excerpt
