"""The report: what tasks measured of a model, and the data of `report.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import TypeAdapter

if TYPE_CHECKING:
    from pathlib import Path

Metrics = Mapping[str, float]

SCHEMA = 1
REPORT = "report.json"
_STORED = ("tasks", "transductive", "measured_on", "published")
_REFERENCES = ("pretrained", "individual")


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of others, to be seen beside one's own: the main metric by method and task."""

    #: whose checkpoints they were measured on
    family: str
    #: where they stand
    source: str
    #: fractions: method -> task -> main metric
    rows: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Report:
    """What the tasks measured of one model, beside the models that it was made from.

    All numbers are fractions. A task's *main metric* is its first; `average` is the mean of the
    main metrics, `normalised_average` the mean of main metric / the individual expert's.
    """

    tasks: Mapping[str, Metrics]
    #: the base on every task, and each task's own expert, where the pool has them
    pretrained: Mapping[str, Metrics] = field(default_factory=dict)
    individual: Mapping[str, Metrics] = field(default_factory=dict)
    #: whether the algorithm saw the (unlabeled) test examples; None if it saw none at all
    transductive: bool | None = None
    #: what was measured on, in words; None for every test example
    measured_on: str | None = None
    #: what others published for the same models and tasks
    published: Published | None = None

    @property
    def average(self) -> float:
        """Mean of the tasks' main metrics."""
        return mean_of(self.tasks)

    @property
    def normalised_average(self) -> float | None:
        """Mean of main metric / individual expert's; None unless every task has such a number."""
        individual = {name: main(each) for name, each in self.individual.items()}
        if not self.tasks or not all(individual.get(name) for name in self.tasks):
            return None
        ratios = [main(each) / individual[name] for name, each in self.tasks.items()]
        return sum(ratios) / len(ratios)

    def over(self, tasks: Collection[str]) -> Self:
        """Return the report on some of the tasks: averages are then over these."""
        return replace(self, tasks={name: self.tasks[name] for name in tasks})

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json` (documented in docs/reference/report.md)."""
        rows = {"pretrained": self.pretrained, "individual": self.individual}
        return {
            "schema": SCHEMA,
            "average": self.average,
            "normalised_average": self.normalised_average,
            "tasks": self.tasks,
            "transductive": self.transductive,
            "measured_on": self.measured_on,
            "reference": {name: row for name, row in rows.items() if row},
            **({} if self.published is None else {"published": asdict(self.published)}),
        }

    @classmethod
    def from_json(cls, content: Any) -> Self:  # noqa: ANN401 - whatever a file holds
        """Return the report that `as_json` gave; raises `ValueError` for anything else."""
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"it is not of schema {SCHEMA}")
        fields = {name: content[name] for name in _STORED if name in content}
        beside = TypeAdapter(Mapping[str, Any]).validate_python(content.get("reference"))
        references = {name: beside[name] for name in _REFERENCES if name in beside}
        report = TypeAdapter(cls).validate_python({**fields, **references})
        rows = (report.tasks, report.pretrained, report.individual)
        if not report.tasks or not all(metrics for each in rows for metrics in each.values()):
            raise ValueError("it has no tasks, or one without metrics")
        return report


def main(metrics: Metrics) -> float:
    """Return a task's main metric, its first."""
    return next(iter(metrics.values()))


def mean_of(tasks: Mapping[str, Metrics]) -> float:
    """Return the mean of the tasks' main metrics."""
    return sum(map(main, tasks.values())) / len(tasks)


def how_to_measure(directory: Path) -> str:
    """Say how a model is measured for which no tasks, or no way to build it, are recorded."""
    return (
        f"If it is of a family that a pool knows, name it: fuse evaluate {directory} --pool NAME; "
        "see: fuse list pools\nAny other model is measured with its own library."
    )
