"""The rules of a diagnosis: each has a condition on measurements and a testable claim about merges.

Thresholds come from theory, or were chosen on pools that the record does not count
(docs/reference/diagnosis.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.diagnosis.merges import ARITHMETIC, AVERAGE, MERGES, SUM, TRIED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Stands for the best of all merges in `MERGES`.
BEST = f"each of {len(MERGES)} merges"
#: Stands for the merge of a trial that agrees most with the experts.
TRIED_BEST = "the one that agrees most"


@dataclass(frozen=True)
class Bound:
    """A condition on one quantity in `Figures.numbers`: least <= value < below."""

    figure: str
    least: float = -math.inf
    below: float = math.inf

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Tell whether the quantity is known and within the bounds."""
        return self.least <= numbers.get(self.figure, math.nan) < self.below

    def __str__(self) -> str:
        parts = []
        if math.isfinite(self.least):
            parts.append(f"at least {self.least:g}")
        if math.isfinite(self.below):
            parts.append(f"below {self.below:g}")
        return f"{self.figure} {' and '.join(parts)}"


@dataclass(frozen=True)
class Rule:
    """A claim that one merge is better than another if all bounds hold.

    Merges have default options and are compared by their mean share of the experts' scores.
    `better` and `worse` are keys of `MERGES`, `base`, `BEST` or `TRIED_BEST`, or a share.
    """

    name: str
    bounds: Sequence[Bound]
    better: str | float
    worse: str | float
    because: str
    #: share of the experts' scores by which `better` may be worse and still count as equally good
    slack: float = 0.0

    @property
    def claim(self) -> str:
        """The claim in words."""
        if isinstance(self.worse, float):
            return f"{self.better} keeps {100 * self.worse:.0f} % of the experts' scores"
        if isinstance(self.better, float):
            lost = 100 * (1 - self.better)
            return f"{self.worse} loses more than {lost:.0f} % of the experts' scores"
        if self.slack:
            share = f"{100 * self.slack:.0f} % of the experts' scores"
            return f"{self.better} is the best of {len(MERGES)} merges, or less than {share} behind"
        return f"{self.better} beats {self.worse}"

    def applies(self, numbers: Mapping[str, float]) -> bool:
        """Tell whether the rule applies to a pool."""
        return all(bound.holds(numbers) for bound in self.bounds)

    def came_true(self, shares: Mapping[str, float]) -> bool:
        """Tell whether the claim held, given each merge's share of the experts' scores."""
        return _value(self.better, shares) + self.slack > _value(self.worse, shares)


def _value(name: str | float, shares: Mapping[str, float]) -> float:
    return shares[name] if isinstance(name, str) else name


#: Models that were fine-tuned from the base, not from other weights.
_NEAR = Bound("relative norm", below=0.9)
#: Task vectors short enough for models to be nearly linear in them, and longer ones.
_SHORT, _LONG = Bound("relative norm", below=0.2), Bound("relative norm", 0.2, 0.9)
#: Nearly orthogonal task vectors, as usual for different tasks.
_APART = Bound("mean cosine", -0.2, 0.2)
#: Task vectors of similar norm.
_EVEN = Bound("norm ratio", below=1.5)
#: Changes in many directions of the matrices.
_FULL = Bound("rank share", least=0.2)
#: Largest change of an entry in wudi's default 300 steps at a rate of 1e-5. A step of Adam is at
#: most sqrt(sum of a_i^2 / b_i) times its rate, for the weights a_i and b_i of its two means
#: (Cauchy-Schwarz): 1 times for the first step, 3.7 times for the last. In the counted pools,
#: entries changed by 0.003 on average and by 0.005 at most.
WUDI_REACH = 0.0078

RULES: Sequence[Rule] = (
    Rule(
        "strangers",
        [Bound("relative norm", least=0.9)],
        "base",
        BEST,
        "task vectors are about as long as the base or longer, as if experts started from other "
        "weights or had permuted units",
    ),
    Rule(
        "torn",
        [Bound("agreement of the average", below=0.5)],
        0.8,
        BEST,
        "simple-average agrees with the experts on less than half of the examples",
    ),
    Rule(
        "agreeing",
        [Bound("agreement of the average", least=0.9)],
        AVERAGE,
        0.9,
        "it agrees with the experts on at least nine in ten examples",
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
        "of the merges tried, it agrees most with the experts",
        slack=0.02,
    ),
    Rule(
        "spectral-best",
        [_SHORT, _APART],
        "tsv-m",
        BEST,
        "task vectors are short and nearly orthogonal",
        slack=0.02,
    ),
    Rule(
        "spectral",
        [_NEAR, _APART, _EVEN, _FULL],
        "tsv-m",
        AVERAGE,
        "task vectors are nearly orthogonal, of similar norm and of high rank: tsv-m keeps their "
        "largest directions, which an average shrinks",
    ),
    Rule(
        "isotropic",
        [_NEAR, _APART, _FULL, Bound("experts", least=4)],
        "iso-c",
        AVERAGE,
        "task vectors are nearly orthogonal and of high rank; iso-c equalises their directions",
    ),
    Rule(
        "spectral-or-signs",
        [_NEAR, _APART, _FULL],
        "tsv-m",
        "ties",
        "task vectors are nearly orthogonal and of high rank: tsv-m keeps directions, ties entries",
    ),
    Rule(
        "signs-long",
        [_LONG],
        ARITHMETIC,
        "ties",
        "task vectors are long, and ties moves further from the base than 0.3 times their sum, "
        "unless many experts are similar",
    ),
    Rule(
        "signs-short",
        [_SHORT, _APART],
        "ties",
        ARITHMETIC,
        "task vectors are short and nearly orthogonal",
    ),
    Rule(
        "few",
        [_NEAR, Bound("experts", below=4)],
        AVERAGE,
        ARITHMETIC,
        "with two or three experts, 0.3 times their sum is a shorter step than the average",
    ),
    Rule(
        "many",
        [_SHORT, Bound("experts", least=4)],
        ARITHMETIC,
        AVERAGE,
        "with four or more experts, 0.3 times their sum is a longer step than the average, which "
        "short task vectors allow",
    ),
    Rule(
        "long-sum",
        [_NEAR, Bound("length of the sum", least=2.0)],
        AVERAGE,
        SUM,
        "the sum is at least twice as long as a mean task vector",
    ),
    Rule(
        "rate",
        [_NEAR, Bound("entry", least=2 * WUDI_REACH), Bound("length of the sum", least=2.5)],
        AVERAGE,
        "wudi",
        f"wudi moves entries by less than {WUDI_REACH}, but task vectors have entries at least "
        "twice as large, so it stays near their sum, which is too long",
    ),
    Rule(
        "stock",
        [_NEAR, _APART],
        AVERAGE,
        "model-stock",
        "model-stock is made for experts of one task; it stays near the base if task vectors are "
        "nearly orthogonal",
    ),
)
