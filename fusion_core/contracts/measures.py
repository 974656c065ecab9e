"""What a number that a task measures means: its name, its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: What a task measured: values by the names of its metrics, the main one first.
Metrics = Mapping[str, float]

#: The unit of what lies between 0 and 1; people are shown it in percent.
FRACTION = "fraction"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that a task declares; accuracies and the like need not be declared.

    Metric("perplexity", unit="", higher_is_better=False)
    """

    name: str
    #: "fraction", "nats", "bits per byte", "s", ...; "" for a number without one
    unit: str = FRACTION
    higher_is_better: bool = True
    #: whether a table says it of every task where it is not zero, though it is not the main one
    is_noted: bool = False

    def ratio(self, value: float, reference: float) -> float | None:
        """Return how good a value is beside another, 1 for as good and more for better.

        None where one of them cannot measure the other: zero, negative, or not a number.
        """
        part, whole = (value, reference) if self.higher_is_better else (reference, value)
        return part / whole if part >= 0 and whole > 0 else None

    def agrees(self, other: Metric) -> bool:
        """Tell whether values of both can be averaged."""
        return (self.unit, self.higher_is_better) == (other.unit, other.higher_is_better)

    def shown(self, value: float) -> str:
        """Return a value for people, without its unit: a fraction in percent."""
        if self.unit == FRACTION:
            return f"{100 * value:.1f}"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"  # noqa: PLR2004 - four digits

    def __str__(self) -> str:
        unit = "%" if self.unit == FRACTION else self.unit
        said = f"{self.name} in {unit}" if unit else self.name
        return said if self.higher_is_better else f"{said}, lower is better"


def main(metrics: Metrics) -> float:
    """Return a task's main metric, its first."""
    return next(iter(metrics.values()))


def mean_of(tasks: Mapping[str, Metrics]) -> float:
    """Return the mean of the tasks' main metrics."""
    return sum(map(main, tasks.values())) / len(tasks)
