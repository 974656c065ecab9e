"""Two reports on the same test examples: whether one model is better, task by task and on average.

`fusion_core.contracts.pairs` says how.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.layout import AVERAGE, are_alike, shared_lines
from fusion_core.contracts.pairs import (
    Comparison,
    compare_differences,
    compare_metrics,
    paired_differences,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.contracts.intervals import Interval
    from fusion_core.contracts.measures import Metric
    from fusion_core.contracts.pairs import Differences
    from fusion_core.contracts.report import Report


@dataclass(frozen=True)
class Difference:
    """How much better or worse the second model is than the first, on a task or on average."""

    label: str
    metric: Metric
    #: second - first, in the metric's unit
    value: float
    interval: Interval | None
    #: how likely so large a difference is among models that are equally good
    p: float
    test: str
    is_task: bool = True

    @property
    def cells(self) -> list[str]:
        """Return it for people: name, difference, interval, p."""
        ends = [self._signed(each) for each in self.interval or ()]
        p = "<0.001" if self.p < 0.001 else f"{self.p:.3f}"  # noqa: PLR2004 - as many digits
        return [self.label, self._signed(self.value), " to ".join(ends), p]

    def _signed(self, value: float) -> str:
        return f"{'+' if value > 0 else ''}{self.metric.shown(value)}"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's data."""
        low, high = self.interval or (None, None)
        return {"difference": self.value, "low": low, "high": high, "p": self.p, "test": self.test}


def differences(first: Report, second: Report) -> list[Difference]:
    """Compare reports on the tasks whose examples both keep, and on their average.

    Examples are the same where there are as many, each with the same weight.
    """
    if first.measured_on != second.measured_on:
        return []
    paired: dict[tuple[str, Metric], Differences] = {}
    compared = []
    for task, metric in shared_lines({"first": first, "second": second}):
        pair = first.tasks[task], second.tasks[task]
        by_example, comparison = paired_differences(*pair), compare_metrics(*pair)
        if by_example is not None and comparison is not None:
            paired[task, metric] = by_example
            compared.append(_named(task, metric, comparison))
    return [*compared, *_on_average(paired)]


def _on_average(paired: Mapping[tuple[str, Metric], Differences]) -> Iterator[Difference]:
    lines = list(paired)
    if len(lines) > 1 and are_alike(lines):
        comparison = compare_differences(list(paired.values()))
        yield _named(AVERAGE, lines[0][1], comparison, is_task=False)


def _named(
    label: str, metric: Metric, comparison: Comparison, *, is_task: bool = True
) -> Difference:
    return Difference(label, metric, **asdict(comparison), is_task=is_task)
