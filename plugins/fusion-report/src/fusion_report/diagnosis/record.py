"""The record of rules, `record.json`, which benchmarks/diagnosis.py writes.

It counts how often each rule held. `looked_at` counts the pools on which the rules were chosen,
`held_out` the pools that were measured only afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True)
class Count:
    """The number of pools in which a rule held, and of those to which it applied."""

    #: kind of models (a key of `kinds.COUNTED`) -> pools in which it held, pools it applied to
    by_kind: Mapping[str, tuple[int, int]]

    def of_kinds(self, names: Collection[str]) -> Count:
        """Return the count for some kinds only."""
        return Count({name: pair for name, pair in self.by_kind.items() if name in names})

    @property
    def once_per_kind(self) -> Count:
        """The count with one observation per kind: whether the rule held in most of its pools."""
        return Count({name: (int(2 * held > of), 1) for name, (held, of) in self.by_kind.items()})

    @property
    def held(self) -> int:
        """The number of pools in which the rule held."""
        return sum(held for held, _ in self.by_kind.values())

    @property
    def of(self) -> int:
        """The number of pools to which the rule applied."""
        return sum(of for _, of in self.by_kind.values())

    @property
    def probability(self) -> float:
        """The confidence by Laplace's rule of succession, which is never certain."""
        return (self.held + 1) / (self.of + 2)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate, assuming independent pools."""
        if not self.of:
            return 0.0, 1.0
        interval = stats.binomtest(self.held, self.of).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    @property
    def is_telling(self) -> bool:
        """Whether the rule is significantly better than chance."""
        return self.interval[0] > 0.5  # noqa: PLR2004 - a coin toss


def read_record() -> Mapping[str, Count]:
    """Return the counts over held-out pools by the names of rules."""
    text = files("fusion_report.diagnosis").joinpath("record.json").read_text(encoding="utf-8")
    stored: dict[str, dict[str, Any]] = json.loads(text)["rules"]
    return {name: Count(counts["held_out"]) for name, counts in stored.items()}
