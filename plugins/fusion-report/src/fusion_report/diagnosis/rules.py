"""What figures say of merges: a few rules, each a condition and a claim that can be measured.

Thresholds are of theory where there is one, and else were chosen on other pools than those that the
record counts (docs/reference/diagnosis.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.diagnosis.merges import ARITHMETIC, AVERAGE, MERGES, SUM, TRIED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The best of all merges that rules speak of.
BEST = f"each of {len(MERGES)} merges"
#: What a trial finds: the merge that agrees most with the experts.
TRIED_BEST = "the one that agrees most"


@dataclass(frozen=True)
class Bound:
    """A condition on one figure (`Figures.numbers`): least <= figure < below."""

    figure: str
    least: float = -math.inf
    below: float = math.inf

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Tell whether a figure is known, and within the bounds."""
        return self.least <= numbers.get(self.figure, math.nan) < self.below

    def __str__(self) -> str:
        parts = [f"at least {self.least:g}"] * math.isfinite(self.least) + [
            f"below {self.below:g}"
        ] * math.isfinite(self.below)
        return f"{self.figure} {' and '.join(parts)}"


@dataclass(frozen=True)
class Rule:
    """Where all bounds hold, one merge is better than another.

    By the mean share of the experts' figures on their tasks, with default options. A merge is a key
    of `MERGES`, `base`, `BEST` or `TRIED_BEST`; or a number, which is a share.
    """

    name: str
    bounds: Sequence[Bound]
    better: str | float
    worse: str | float
    because: str
    #: how much of the experts' figures `better` may lack and still be called as good
    slack: float = 0.0

    @property
    def claim(self) -> str:
        """What it says, in words."""
        if isinstance(self.worse, float):
            return f"{self.better} keeps {100 * self.worse:.0f} % of the experts' figures"
        if isinstance(self.better, float):
            lost = 100 * (1 - self.better)
            return f"{self.worse} loses more than {lost:.0f} % of the experts' figures"
        if self.slack:
            share = f"{100 * self.slack:.0f} % of the experts' figures"
            return f"{self.better} is the best of {len(MERGES)} merges, or less than {share} behind"
        return f"{self.better} beats {self.worse}"

    def applies(self, numbers: Mapping[str, float]) -> bool:
        """Tell whether the rule says anything of a pool."""
        return all(bound.holds(numbers) for bound in self.bounds)

    def came_true(self, shares: Mapping[str, float]) -> bool:
        """Tell whether its claim held, by each merge's measured share of the experts' figures."""
        return _value(self.better, shares) + self.slack > _value(self.worse, shares)


def _value(name: str | float, shares: Mapping[str, float]) -> float:
    return shares[name] if isinstance(name, str) else name


#: Models that went from the base, and did not begin somewhere else.
_NEAR = Bound("relative norm", below=0.9)
#: Task vectors so short that models are nearly linear in them, and so long that they are not.
_SHORT, _LONG = Bound("relative norm", below=0.2), Bound("relative norm", 0.2, 0.9)
#: Task vectors nearly at right angles, as those of different tasks are.
_APART = Bound("mean cosine", -0.2, 0.2)
#: No expert went much farther than the others.
_EVEN = Bound("norm ratio", below=1.5)
#: Matrices changed in many directions.
_FULL = Bound("rank share", least=0.2)
#: How far an entry goes at most in the 300 steps of 1e-5 that are wudi's default. A step of Adam is
#: at most sqrt(sum of a_i^2 / b_i) times its rate, for the weights a_i and b_i of its two means
#: (Cauchy-Schwarz): 1 for the first step, 3.7 for the last. Entries go 0.003 on average, and 0.005
#: at most, on the pools that were counted.
WUDI_REACH = 0.0078

RULES: Sequence[Rule] = (
    Rule(
        "strangers",
        [Bound("relative norm", least=0.9)],
        "base",
        BEST,
        "task vectors are about as long as the base, or longer: as if experts began elsewhere, or "
        "had their units in another order",
    ),
    Rule(
        "torn",
        [Bound("agreement of the average", below=0.5)],
        0.8,
        BEST,
        "less than half of what simple-average predicts is what the experts predict",
    ),
    Rule(
        "agreeing",
        [Bound("agreement of the average", least=0.9)],
        AVERAGE,
        0.9,
        "at least nine in ten of its predictions are the experts'",
    ),
    Rule(
        "alike",
        [_NEAR, Bound("mean cosine", least=0.5)],
        AVERAGE,
        0.9,
        "task vectors point in similar directions",
    ),
    Rule(
        "trial",
        [Bound("merges tried", least=len(TRIED))],
        TRIED_BEST,
        BEST,
        "of what was tried, it agrees most with the experts",
        slack=0.02,
    ),
    Rule(
        "spectral-best",
        [_SHORT, _APART],
        "tsv-m",
        BEST,
        "task vectors are short, and nearly at right angles on average",
        slack=0.02,
    ),
    Rule(
        "spectral",
        [_NEAR, _APART, _EVEN, _FULL],
        "tsv-m",
        AVERAGE,
        "nearly at right angles, of similar length, and in many directions: an average divides "
        "each, tsv-m keeps the largest directions whole",
    ),
    Rule(
        "isotropic",
        [_NEAR, _APART, _FULL, Bound("experts", least=4)],
        "iso-c",
        AVERAGE,
        "nearly at right angles, and in many directions, which iso-c makes equally strong",
    ),
    Rule(
        "spectral-or-signs",
        [_NEAR, _APART, _FULL],
        "tsv-m",
        "ties",
        "nearly at right angles, and in many directions: tsv-m keeps directions, ties entries",
    ),
    Rule(
        "signs-long",
        [_LONG],
        ARITHMETIC,
        "ties",
        "task vectors are long, and ties goes farther from the base than 0.3 of their sum, unless "
        "many experts are alike",
    ),
    Rule(
        "signs-short",
        [_SHORT, _APART],
        "ties",
        ARITHMETIC,
        "task vectors are short, and nearly at right angles on average",
    ),
    Rule(
        "few",
        [_NEAR, Bound("experts", below=4)],
        AVERAGE,
        ARITHMETIC,
        "of two or three experts, 0.3 of each is a shorter step than the average",
    ),
    Rule(
        "many",
        [_SHORT, Bound("experts", least=4)],
        ARITHMETIC,
        AVERAGE,
        "of four experts and more, 0.3 of each is a longer step than the average, which short task "
        "vectors bear",
    ),
    Rule(
        "long-sum",
        [_NEAR, Bound("length of the sum", least=2.0)],
        AVERAGE,
        SUM,
        "the sum is at least twice as long as the mean task vector",
    ),
    Rule(
        "rate",
        [_NEAR, Bound("entry", least=2 * WUDI_REACH), Bound("length of the sum", least=2.5)],
        AVERAGE,
        "wudi",
        f"its rate moves an entry by less than {WUDI_REACH}, theirs are twice as large and more: "
        "it stays near the sum, which is too long",
    ),
    Rule(
        "stock",
        [_NEAR, _APART],
        AVERAGE,
        "model-stock",
        "it is for experts of one task: the nearer to right angles experts are, the nearer it "
        "stays to the base",
    ),
)
