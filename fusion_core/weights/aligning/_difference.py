"""Ways in which models do not fit together, and the one table that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.errors import AlignmentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LONGEST_TABLE = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which an expert does not fit the reference."""

    #: a tensor, or what else is compared
    subject: str
    expert: str
    problem: str
    #: the policy that would let it pass, if there is one
    remedy: str = ""

    def __str__(self) -> str:
        return f"  {self.subject}  {self.expert}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A difference in what lies beside the weights: tensors may fit, and mean something else."""

    subject: str
    expert: str
    problem: str
    #: whether it makes a merge meaningless; else it may
    serious: bool = True

    def __str__(self) -> str:
        return f"{self.expert}: {self.subject}: {self.problem}"

    def as_difference(self, remedy: str) -> Difference:
        """Return it as an error of a table."""
        return Difference(self.subject, self.expert, self.problem, remedy)


def misfit(beside: Sequence[Difference], tensors: Iterable[Difference]) -> AlignmentError:
    """Return the error that shows all differences; those beside the weights explain the others."""
    ordered = [*beside, *sorted(tensors, key=lambda each: (each.subject, each.expert))]
    rows = [str(each) for each in ordered[:_LONGEST_TABLE]]
    if len(ordered) > _LONGEST_TABLE:
        rows.append(f"  ... and {len(ordered) - _LONGEST_TABLE} more")
    plural = "difference" if len(ordered) == 1 else "differences"
    head = f"the models do not fit together: {len(ordered)} {plural}"
    allowed = sorted({each.remedy for each in ordered if each.remedy})
    advice = f"; to allow some of this: {', '.join(allowed)}" if allowed else ""
    hint = f"Check that every expert was fine-tuned from this base{advice}."
    return AlignmentError("\n".join([head, *rows]), hint=hint)
