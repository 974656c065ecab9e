"""What tasks measure: numbers, what they mean, and the examples that they are means of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        is_said = unit in {"", self.name.replace("_", " ")}
        said = self.name if is_said else f"{self.name} in {unit}"
        return said if self.higher_is_better else f"{said}, lower is better"


class Measured(dict[str, float]):
    """Metrics with each test example's own value of the main one.

    From these come intervals, and paired tests between two models. What is not the mean of
    something that every example has, like a rank correlation, has no outcomes.

    Measured({"accuracy": 0.75}, outcomes=[1, 1, 0, 1])
    Measured({"bits_per_byte": 0.9}, outcomes=[0.8, 1.2], weights=[300, 100])
    """

    def __init__(
        self, metrics: Metrics, outcomes: Iterable[float], weights: Iterable[float] | None = None
    ) -> None:
        """Keep the outcomes, in the order of the test examples.

        The main metric is their mean, by `weights` if there are some; `ValueError` if it is not.
        """
        super().__init__(metrics)
        #: each test example's value of the main metric: 0 or 1 for an accuracy
        self.outcomes = tuple(map(float, outcomes))
        #: how much each example counts; None for all alike
        self.weights = None if weights is None else tuple(map(float, weights))
        mean = weighted_mean(self.outcomes, self.weights)
        if math.isfinite(main(self)) and not math.isclose(
            main(self), mean, rel_tol=1e-6, abs_tol=1e-9
        ):
            name = next(iter(self))
            raise ValueError(f"{name} is {main(self)}, and the mean of its outcomes {mean}")

    @property
    def is_binary(self) -> bool:
        """Tell whether every outcome is right or wrong, and counts alike."""
        return self.weights is None and {0.0, 1.0}.issuperset(self.outcomes)

    def pairs_with(self, other: Metrics) -> TypeGuard[Measured]:
        """Tell whether both keep outcomes, of as many examples, each with the same weight."""
        if not isinstance(other, Measured):
            return False
        return len(self.outcomes) == len(other.outcomes) and self.weights == other.weights

    def differences(self, other: Measured) -> list[float]:
        """Return other - self by example, for metrics that `pairs_with` this one."""
        pairs = zip(self.outcomes, other.outcomes, strict=True)
        return [after - before for before, after in pairs]


def weighted_mean(values: Sequence[float], weights: Sequence[float] | None) -> float:
    """Return a mean; NaN of nothing. `ValueError` where there is not a weight for each value."""
    if weights is None:
        return sum(values) / len(values) if values else math.nan
    total = sum(weights)
    products = (value * weight for value, weight in zip(values, weights, strict=True))
    return sum(products) / total if total else math.nan


def mean_ratio(figures: Iterable[tuple[Metric, float, float]]) -> float | None:
    """Return the mean of how good values are beside references, NaN for one that is not there.

    None unless every value has such a ratio, and there is one.
    """
    ratios = [metric.ratio(value, reference) for metric, value, reference in figures]
    known = [each for each in ratios if each is not None]
    return sum(known) / len(known) if known and len(known) == len(ratios) else None


def main(metrics: Metrics) -> float:
    """Return a task's main metric, its first."""
    return next(iter(metrics.values()))


def mean_of(tasks: Mapping[str, Metrics]) -> float:
    """Return the mean of the tasks' main metrics."""
    return sum(map(main, tasks.values())) / len(tasks)


def as_json(value: float) -> float | str:
    """Return a number as JSON has it, which knows none but finite ones."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
