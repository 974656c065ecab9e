"""Measurements of tasks: metrics, their units and directions, and per-example outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: One task's measurement of a model: values by metric name, the main metric first.
MetricValues = Mapping[str, float]

#: The unit of values between 0 and 1, which tables print in percent.
FRACTION = "fraction"


@dataclass(frozen=True, slots=True)
class Reference:
    """The measurements that a merge is compared with: those of the base and of the experts."""

    #: the base's metrics by task; empty if the pool has no base
    base: Mapping[str, MetricValues] = field(default_factory=dict)
    #: the metrics of each task's own expert, by task
    experts: Mapping[str, MetricValues] = field(default_factory=dict)

    def without_outcomes(self) -> Reference:
        """Return the values alone, as plain mappings."""
        base, experts = (
            {task: dict(metrics) for task, metrics in row.items()}
            for row in (self.base, self.experts)
        )
        return Reference(base, experts)


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric: its unit and direction.

    A task need not declare fractions for which higher is better, such as accuracies. Example::

        Metric("perplexity", unit="", higher_is_better=False)
    """

    name: str
    #: "fraction", "nats", "bits per byte", "s", ...; "" for a number without a unit
    unit: str = FRACTION
    higher_is_better: bool = True
    #: whether tables also show it where it is nonzero and not the main metric
    is_noted: bool = False

    def ratio(self, value: float, reference: float) -> float | None:
        """Return value / reference, inverted if lower is better: 1 is as good, more is better.

        None if the quotient is meaningless: zero reference, negative value, or NaN.
        """
        numerator, denominator = (value, reference) if self.higher_is_better else (reference, value)
        return numerator / denominator if numerator >= 0 and denominator > 0 else None

    def agrees(self, other: Metric) -> bool:
        """Tell whether both have one unit and direction, so that values can be averaged."""
        return (self.unit, self.higher_is_better) == (other.unit, other.higher_is_better)

    def shown(self, value: float) -> str:
        """Format a value for people, without its unit; fractions in percent."""
        if self.unit == FRACTION:
            return f"{100 * value:.1f}"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"  # noqa: PLR2004 - four digits

    def __str__(self) -> str:
        unit = "%" if self.unit == FRACTION else self.unit
        is_redundant = unit in {"", self.name.replace("_", " ")}
        text = self.name if is_redundant else f"{self.name} in {unit}"
        return text if self.higher_is_better else f"{text}, lower is better"


class Measured(dict[str, float]):
    """Metrics together with every test example's own value of the main metric.

    These outcomes give confidence intervals and paired tests between two models. Return plain
    metrics if the main metric is not a mean over examples, like a rank correlation. Examples::

        Measured({"accuracy": 0.75}, outcomes=[1, 1, 0, 1])
        Measured({"bits_per_byte": 0.9}, outcomes=[0.8, 1.2], weights=[300, 100])
    """

    def __init__(
        self,
        metrics: MetricValues,
        outcomes: Iterable[float],
        weights: Iterable[float] | None = None,
    ) -> None:
        """Store the outcomes in the order of the test examples.

        Raises `ValueError` if the main metric is not their mean, weighted by `weights` if given.
        """
        super().__init__(metrics)
        #: each test example's value of the main metric: 0 or 1 for an accuracy
        self.outcomes = tuple(map(float, outcomes))
        #: the weight of each example; None for equal weights
        self.weights = None if weights is None else tuple(map(float, weights))
        mean = weighted_mean(self.outcomes, self.weights)
        value = main_value(self)
        if math.isfinite(value) and not math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"{next(iter(self))} is {value}, and the mean of its outcomes {mean}")

    @property
    def is_binary(self) -> bool:
        """Whether every outcome is 0 or 1, with equal weights."""
        return self.weights is None and {0.0, 1.0}.issuperset(self.outcomes)

    def pairs_with(self, other: MetricValues) -> TypeGuard[Measured]:
        """Tell whether `other` has outcomes of as many examples, with the same weights."""
        if not isinstance(other, Measured):
            return False
        return len(self.outcomes) == len(other.outcomes) and self.weights == other.weights

    def differences(self, other: Measured) -> list[float]:
        """Return other - self per example, for metrics that `pairs_with` this one."""
        pairs = zip(self.outcomes, other.outcomes, strict=True)
        return [after - before for before, after in pairs]


def weighted_mean(values: Sequence[float], weights: Sequence[float] | None) -> float:
    """Return the mean; NaN without values or weight. Raises `ValueError` for other lengths."""
    if weights is None:
        return sum(values) / len(values) if values else math.nan
    total = sum(weights)
    products = (value * weight for value, weight in zip(values, weights, strict=True))
    return sum(products) / total if total else math.nan


def mean_ratio(figures: Iterable[tuple[Metric, float, float]]) -> float | None:
    """Return the mean of `Metric.ratio` over (metric, value, reference).

    None without figures, or if any ratio is None. Pass NaN for a missing number.
    """
    ratios = []
    for metric, value, reference in figures:
        ratio = metric.ratio(value, reference)
        if ratio is None:
            return None
        ratios.append(ratio)
    return sum(ratios) / len(ratios) if ratios else None


def main_value(metrics: MetricValues) -> float:
    """Return the value of a task's main metric, the first."""
    return next(iter(metrics.values()))


def mean_main_value(tasks: Mapping[str, MetricValues]) -> float:
    """Return the mean of the tasks' main metrics."""
    return sum(map(main_value, tasks.values())) / len(tasks)


def as_json(value: float) -> float | str:
    """Return a number for JSON: NaN and infinities become text, which JSON cannot hold."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"


def numbers_as_json(data: Any) -> Any:  # noqa: ANN401 - JSON data
    """Return mappings and sequences with all their numbers as `as_json` writes them."""
    if isinstance(data, Mapping):
        return {name: numbers_as_json(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [numbers_as_json(value) for value in data]
    return as_json(data) if isinstance(data, float) else data
