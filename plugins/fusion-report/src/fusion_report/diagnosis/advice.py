"""What rules say of a pool, how sure they are, and where nobody can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_report.diagnosis.record import Count, read_record
from fusion_report.diagnosis.rules import RULES, TRIED_BEST, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_report.diagnosis.figures import Figures


@dataclass(frozen=True)
class Advice:
    """A rule that applies to a pool, and the figures that it goes by."""

    rule: Rule
    #: what the rule claims of this pool
    claim: str
    count: Count
    #: the figures of the rule's bounds
    numbers: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's data."""
        return {
            "rule": self.rule.name,
            "claim": self.claim,
            "because": self.rule.because,
            "figures": dict(self.numbers),
            "is_telling": self.count.is_telling,
            "probability": self.count.probability,
            "held": self.count.held,
            "of": self.count.of,
            "interval": list(self.count.interval),
            "by_family": dict(self.count.by_family),
        }


def advise(figures: Figures) -> list[Advice]:
    """Return what rules say of a pool, those that can tell first.

    Nothing without a base, and unless there are several experts, which differ from it.
    """
    is_one = figures.count == 1 or any(each.norm == 0 for each in figures.experts.values())
    if is_one or not figures.has_base:
        return []
    numbers, record, tried = figures.numbers, read_record(), figures.tried
    most = max(tried, key=lambda name: tried[name], default="")
    found = [
        Advice(
            rule,
            rule.claim.replace(TRIED_BEST, most),
            record[rule.name],
            {each.figure: numbers[each.figure] for each in rule.bounds},
        )
        for rule in RULES
        if rule.applies(numbers)
    ]
    return sorted(found, key=lambda each: not each.count.is_telling)
