"""Ways in which models do not fit together, how policies judge them, and the table of errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fusion_core.errors import AlignmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fusion_core.recipe.config import AlignmentPolicy

#: What descriptions of models differ in, and the policies that judge it: `alignment.config` and
#: `alignment.tokenizer`.
Topic = Literal["config", "tokenizer"]
#: The remedy of tensors that the base lacks, perhaps only under this name.
DROP_EXTRA = "alignment.extra=drop"
_MOST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which an expert does not fit the base, or the experts before it."""

    #: a tensor, or a file and a key in it
    subject: str
    expert: str
    problem: str
    #: the policy that would allow it, if there is one
    remedy: str = ""
    #: whether it makes a merge meaningless, not only doubtful
    is_serious: bool = True

    def __str__(self) -> str:
        return f"{self.expert}: {self.subject}: {self.problem}"


def judge(
    find: Callable[[Topic], Iterable[Difference]], policy: AlignmentPolicy
) -> tuple[list[Difference], list[str]]:
    """Return the differences that the policies make errors, and warnings for the others.

    `find` returns the differences of a topic. It is not called for a topic that a policy ignores.
    """
    errors: list[Difference] = []
    warnings: list[str] = []
    settings: dict[Topic, str] = {"config": policy.config, "tokenizer": policy.tokenizer}
    for topic, setting in settings.items():
        for difference in () if setting == "ignore" else find(topic):
            if difference.is_serious and setting == "error":
                errors.append(replace(difference, remedy=f"alignment.{topic}=warn"))
            else:
                warnings.append(str(difference))
    return errors, warnings


def misfit(descriptions: Sequence[Difference], tensors: Iterable[Difference]) -> AlignmentError:
    """Return the error that shows all differences; those of descriptions explain the others."""
    ordered = [*descriptions, *sorted(tensors, key=lambda row: (row.subject, row.expert))]
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
    if DROP_EXTRA in remedies:
        hint += (
            " Models whose files name or pack the same tensors differently, such as mixtures, and "
            "adapters of Gemma 3, merge in the pools of pools-lm, such as causal-lm."
        )
    return AlignmentError("\n".join(lines), hint=hint)
