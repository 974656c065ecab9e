"""How often each rule came true on measured pools: `record.json`, by benchmarks/diagnosis.py.

`looked_at` are the pools on which rules were made, `held_out` those that nobody looked at before.
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
    """How often a rule came true, of how many pools that it spoke of."""

    #: both, by the kind of models (`kinds.COUNTED`)
    by_kind: Mapping[str, tuple[int, int]]

    def of_kinds(self, names: Collection[str]) -> Count:
        """Return the count of some kinds alone."""
        return Count({name: each for name, each in self.by_kind.items() if name in names})

    @property
    def once_per_kind(self) -> Count:
        """The same with one observation per kind: whether it came true in most of its pools."""
        return Count({name: (int(2 * held > of), 1) for name, (held, of) in self.by_kind.items()})

    @property
    def held(self) -> int:
        """In how many pools it came true."""
        return sum(held for held, _ in self.by_kind.values())

    @property
    def of(self) -> int:
        """Of how many pools it spoke."""
        return sum(of for _, of in self.by_kind.values())

    @property
    def probability(self) -> float:
        """How sure the rule is: Laplace's rule of succession, so that a few are not certainty."""
        return (self.held + 1) / (self.of + 2)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate, as if pools had nothing to do with each other."""
        if not self.of:
            return 0.0, 1.0
        interval = stats.binomtest(self.held, self.of).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    @property
    def is_telling(self) -> bool:
        """Whether the rule is more often right than not, as far as the count can tell."""
        return self.interval[0] > 0.5  # noqa: PLR2004 - a coin's


def read_record() -> Mapping[str, Count]:
    """Return the counts of held-out pools by the rules' names."""
    text = files("fusion_report.diagnosis").joinpath("record.json").read_text(encoding="utf-8")
    stored: dict[str, dict[str, Any]] = json.loads(text)["rules"]
    return {name: Count(each["held_out"]) for name, each in stored.items()}
