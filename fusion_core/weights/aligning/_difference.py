"""Ways in which models do not fit together, and the one table that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.errors import AlignmentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: A part of the names of a mixture's experts, in both layouts.
_EXPERTS = ".experts."
_MOST_ROWS = 20
_LONGEST_VALUE, _SHARED_PREFIX = 60, 15


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which an expert does not fit the base, or the experts before it."""

    #: a tensor, or a side file and a key in it
    subject: str
    expert: str
    problem: str
    #: the policy that would allow it, if there is one
    remedy: str = ""
    #: whether it makes a merge meaningless, not only doubtful
    is_serious: bool = True

    def __str__(self) -> str:
        return f"{self.expert}: {self.subject}: {self.problem}"


def misfit(side_files: Sequence[Difference], tensors: Iterable[Difference]) -> AlignmentError:
    """Return the error that shows all differences; those of side files explain the others."""
    ordered = [*side_files, *sorted(tensors, key=lambda row: (row.subject, row.expert))]
    count = len(ordered)
    lines = [
        f"the models do not fit together: {count} difference{'' if count == 1 else 's'}",
        *(f"  {row.subject}  {row.expert}: {row.problem}" for row in ordered[:_MOST_ROWS]),
    ]
    if count > _MOST_ROWS:
        lines.append(f"  ... and {count - _MOST_ROWS} more")
    remedies = sorted({row.remedy for row in ordered if row.remedy})
    advice = f"; to allow some differences: {', '.join(remedies)}" if remedies else ""
    hint = f"Check that every expert was fine-tuned from this base{advice}."
    if any(_EXPERTS in row.subject for row in ordered if row.remedy):
        hint += (
            " Models that store the experts of a mixture one by one and packed ones merge in the "
            "pools of pools-lm, such as causal-lm."
        )
    return AlignmentError("\n".join(lines), hint=hint)


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
