"""What rules say of a pool, how sure they are, and where nobody can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_report.diagnosis.kinds import counted_as
from fusion_report.diagnosis.record import Count, read_record
from fusion_report.diagnosis.rules import RULES, TRIED_BEST, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_report.diagnosis.figures import Figures


@dataclass(frozen=True)
class Advice:
    """A rule that applies to a pool, and the figures that it goes by.

    Where the rule was counted on the pool's kind of models, these counts alone say how sure it is.
    Elsewhere each kind is one observation, and the lower end of their interval is what is left.
    """

    rule: Rule
    #: what the rule claims of this pool
    claim: str
    #: of all kinds of models
    count: Count
    #: of the pool's own kind
    own_count: Count
    #: the figures of the rule's bounds
    numbers: Mapping[str, float]

    @property
    def is_counted(self) -> bool:
        """Whether the rule was counted on the pool's kind of models."""
        return self.own_count.of > 0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: over pools of its kind, or over kinds if there are none."""
        return (self.own_count if self.is_counted else self.count.once_per_kind).interval

    @property
    def probability(self) -> float:
        """How sure the rule is of this pool."""
        return self.own_count.probability if self.is_counted else self.interval[0]

    @property
    def is_telling(self) -> bool:
        """Whether the rule is more often right than not, on this kind of models."""
        return self.interval[0] > 0.5  # noqa: PLR2004 - a coin's

    @property
    def is_shown(self) -> bool:
        """Whether it says more than "cannot tell": where it is telling, or is so on other kinds."""
        return self.is_telling if self.is_counted else self.count.is_telling

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's data."""
        return {
            "rule": self.rule.name,
            "claim": self.claim,
            "because": self.rule.because,
            "figures": dict(self.numbers),
            "is_counted": self.is_counted,
            "is_telling": self.is_telling,
            "probability": self.probability,
            "interval": list(self.interval),
            "held": self.count.held,
            "of": self.count.of,
            "by_kind": dict(self.count.by_kind),
            "own_kinds": list(self.own_count.by_kind),
        }


def advise(figures: Figures) -> list[Advice]:
    """Return what rules say of a pool, those that can tell first.

    Nothing without a base, and unless there are several experts, which differ from it.
    """
    is_one = figures.count == 1 or any(expert.norm == 0 for expert in figures.experts.values())
    if is_one or not figures.has_base:
        return []
    numbers, record, tried = figures.numbers, read_record(), figures.tried
    most = max(tried, key=lambda name: tried[name], default="")
    own_kinds = counted_as(figures.kind)
    found = [
        Advice(
            rule,
            rule.claim.replace(TRIED_BEST, most),
            record[rule.name],
            record[rule.name].of_kinds(own_kinds),
            {bound.figure: numbers[bound.figure] for bound in rule.bounds},
        )
        for rule in RULES
        if rule.applies(numbers)
    ]
    return sorted(found, key=lambda advice: (not advice.is_counted, not advice.is_shown))
