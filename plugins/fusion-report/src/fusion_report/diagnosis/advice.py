"""Apply the rules to a pool, with a confidence for each prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_report.diagnosis.kinds import matching_kinds
from fusion_report.diagnosis.record import Count, read_record
from fusion_report.diagnosis.rules import RULES, TRIED_BEST, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_report.diagnosis.figures import Figures


@dataclass(frozen=True)
class Advice:
    """The prediction of a rule for a pool, with its confidence.

    If the record has pools of the same kind of models, the confidence depends on these alone.
    Otherwise each counted kind is one observation, and the confidence is the lower end of the
    interval over kinds.
    """

    rule: Rule
    #: the rule's claim about this pool
    claim: str
    #: the record over all kinds of models
    count: Count
    #: the record over the pool's kind of models
    own_count: Count
    #: the quantities in the rule's bounds
    numbers: Mapping[str, float]

    @property
    def is_counted(self) -> bool:
        """Whether the record has pools of this kind of models."""
        return self.own_count.of > 0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval over pools of this kind, or over kinds if there are none."""
        return (self.own_count if self.is_counted else self.count.once_per_kind).interval

    @property
    def probability(self) -> float:
        """The confidence of the prediction."""
        return self.own_count.probability if self.is_counted else self.interval[0]

    @property
    def is_telling(self) -> bool:
        """Whether the rule is significantly better than chance on this kind of models."""
        return self.interval[0] > 0.5  # noqa: PLR2004 - a coin toss

    @property
    def is_shown(self) -> bool:
        """Whether to print the prediction rather than "cannot tell"."""
        return self.is_telling if self.is_counted else self.count.is_telling

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as JSON data."""
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
    """Return the predictions for a pool, those with a confidence above chance first.

    If several merges of a trial agree most with the experts, none is predicted to be the best.
    Empty without a base, with a single expert, or if an expert equals the base.
    """
    is_degenerate = figures.count == 1 or any(
        expert.norm == 0 for expert in figures.experts.values()
    )
    if is_degenerate or not figures.has_base:
        return []
    numbers, record, tried = figures.numbers, read_record(), figures.trial_agreement
    most = max(tried.values(), default=0.0)
    leaders = [name for name, agreement in tried.items() if agreement == most]
    kinds = matching_kinds(figures.kind)
    predictions = [
        Advice(
            rule,
            rule.claim.replace(TRIED_BEST, leaders[0] if leaders else ""),
            record[rule.name],
            record[rule.name].of_kinds(kinds),
            {bound.figure: numbers[bound.figure] for bound in rule.bounds},
        )
        for rule in RULES
        if rule.applies(numbers) and (rule.better != TRIED_BEST or len(leaders) == 1)
    ]
    return sorted(predictions, key=lambda advice: (not advice.is_counted, not advice.is_shown))
