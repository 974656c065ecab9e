"""The report: what tasks measured of a model, and the data of `report.json`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn, Self

from pydantic import TypeAdapter

from fusion_core._moved import moved_name_error
from fusion_core.contracts.below_base import (
    BelowBase,
    describe_below_base,
    find_below_base,
    find_within_chance,
)
from fusion_core.contracts.layout import table_of
from fusion_core.contracts.measures import Metric, Metrics, as_json, main, mean_of, mean_ratio
from fusion_core.contracts.outcomes import SCHEMA as OUTCOMES_SCHEMA
from fusion_core.contracts.outcomes import row_as_json, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core.contracts.intervals import Intervals

SCHEMA = 2
REPORT = "report.json"
_STORED = (
    *("tasks", "transductive", "measured_on", "published", "remembered", "needs_task"),
    *("conditions", "chosen", "within_chance"),
)
#: The rows beside a model's own, each with what schema 1 called it.
_REFERENCES = {"base": "pretrained", "experts": "individual"}


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

    A task's *main metric* is its first.
    """

    tasks: Mapping[str, Metrics]
    #: the base on every task, and each task's own expert, where the pool has them
    base: Mapping[str, Metrics] = field(default_factory=dict)
    experts: Mapping[str, Metrics] = field(default_factory=dict)
    #: whether the algorithm saw the (unlabeled) test examples; None if it saw none at all
    transductive: bool | None = None
    #: what was measured on, in words; None for every test example
    measured_on: str | None = None
    #: what others published for the same models and tasks
    published: Published | None = None
    #: what tasks declare of their metrics, by task and name; others are fractions
    metrics: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    #: the tasks of `base` and `experts` that an earlier run measured
    remembered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: whether tasks were measured with something of their own, so that using it needs the task
    needs_task: bool = False
    #: what tasks say of how they were measured: versions, few-shot, seeds, ...
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: how the options of the run were chosen, in words, where that is known
    chosen: str | None = None
    #: tasks whose expert scores below the base by no more than chance allows, as outcomes showed
    #: that this report need not hold
    within_chance: tuple[str, ...] = ()

    def metric(self, task: str, name: str) -> Metric:
        """Return what is known of a task's metric."""
        return self.metrics.get(task, {}).get(name) or Metric(name)

    @property
    def main_metrics(self) -> Mapping[str, Metric]:
        """Every task's main metric."""
        return {task: self.metric(task, next(iter(each))) for task, each in self.tasks.items()}

    @property
    def average(self) -> float | None:
        """Mean of the tasks' main metrics; None unless all have one unit and direction."""
        found = list(self.main_metrics.values())
        alike = found and all(found[0].agrees(each) for each in found)
        return mean_of(self.tasks) if alike else None

    @property
    def normalised_average(self) -> float | None:
        """Mean of main metric / the expert's, or its inverse where lower is better.

        None unless every task has such a number, of an expert that is not below the base.
        """
        if self.experts_below_base:
            return None
        experts = {name: main(each) for name, each in self.experts.items()}
        return mean_ratio(
            (metric, main(self.tasks[task]), experts.get(task, math.nan))
            for task, metric in self.main_metrics.items()
        )

    @cached_property
    def experts_below_base(self) -> tuple[BelowBase, ...]:
        """The experts that score below the base on their own task, beyond chance.

        Experts and tasks then probably do not belong together.
        """
        rows = self.main_metrics, self.base, self.experts
        return tuple(find_below_base(*rows, self.within_chance))

    def over(self, tasks: Collection[str]) -> Self:
        """Return the report on some of the tasks: averages are then over these."""
        return replace(self, tasks={name: self.tasks[name] for name in tasks})

    def plot(self) -> NoReturn:
        """Raise an `ImportError` that names `fusion_report.plot`, which draws reports."""
        raise moved_name_error("Report.plot")

    def to_dataframe(self) -> NoReturn:
        """Raise an `ImportError` that names `fusion_report.to_dataframe`."""
        raise moved_name_error("Report.to_dataframe")

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        notes = [describe_below_base(self.experts_below_base)]
        if self.transductive:
            notes.append("transductive: the algorithm saw the test examples, without their labels")
        return table_of({"merged": self}).as_html("; ".join(filter(None, notes)))

    def as_json(self, intervals: Intervals | None = None) -> dict[str, Any]:
        """Return the content of `report.json` (documented in docs/reference/report.md).

        With `intervals`, the figures' intervals are added, which no file has.
        """
        rows = {name: _plain(getattr(self, name)) for name in _REFERENCES}
        return {
            "schema": SCHEMA,
            "average": _plain(self.average),
            "normalised_average": self.normalised_average,
            "experts_below_base": {
                expert.task: expert.as_json() for expert in self.experts_below_base
            },
            "tasks": _plain(self.tasks),
            "metrics": self._metrics_as_json(),
            "transductive": self.transductive,
            "measured_on": self.measured_on,
            "reference": {name: row for name, row in rows.items() if row},
            "remembered": {name: list(tasks) for name, tasks in self.remembered.items()},
            **({"needs_task": True} if self.needs_task else {}),
            **({"conditions": self.conditions} if self.conditions else {}),
            **({} if self.chosen is None else {"chosen": self.chosen}),
            **({"within_chance": within} if (within := self._within_chance()) else {}),
            **({} if self.published is None else {"published": asdict(self.published)}),
            **({} if intervals is None else {"intervals": self._intervals_as_json(intervals)}),
        }

    @classmethod
    def from_json(cls, content: Any) -> Self:  # noqa: ANN401 - whatever a file holds
        """Return the report that `as_json` gave; raises `ValueError` for anything else."""
        if not isinstance(content, dict) or content.get("schema") not in {1, SCHEMA}:
            raise ValueError(f"it is not of schema {SCHEMA}")
        fields = {name: content[name] for name in _STORED if name in content}
        beside = _adapter(Mapping[str, Any]).validate_python(content.get("reference"))
        for name, old in _REFERENCES.items():
            fields[name] = beside.get(old if content["schema"] == 1 else name, {})
        fields["metrics"] = dict(_declared(content.get("metrics", {})))
        kind: Any = cls
        report: Self = _adapter(kind).validate_python(fields)
        rows = (report.tasks, report.base, report.experts)
        if not report.tasks or not all(metrics for row in rows for metrics in row.values()):
            raise ValueError("it has no tasks, or one without metrics")
        return report

    def outcomes_as_json(self) -> dict[str, Any]:
        """Return the content of `outcomes.json`; empty where no task keeps each example's."""
        rows = {name: row_as_json(getattr(self, name)) for name in ("tasks", *_REFERENCES)}
        found = {name: row for name, row in rows.items() if row}
        return {"schema": OUTCOMES_SCHEMA, **found} if found else {}

    def with_outcomes(self, content: Any) -> Self:  # noqa: ANN401 - whatever a file holds
        """Return the report with what `outcomes_as_json` gave; `ValueError` if it is not its."""
        if not isinstance(content, dict) or content.get("schema") != OUTCOMES_SCHEMA:
            raise ValueError(f"it is not of schema {OUTCOMES_SCHEMA}")
        names = ("tasks", *_REFERENCES)
        rows: dict[str, Any] = {n: row_of(getattr(self, n), content.get(n, {})) for n in names}
        return replace(self, **rows)

    def without_outcomes(self) -> Self:
        """Return the report without the base's and the experts' outcomes, and what they showed."""
        base, experts = (_without_outcomes(row) for row in (self.base, self.experts))
        within_chance = tuple(self._within_chance())
        return replace(self, base=base, experts=experts, within_chance=within_chance)

    def _intervals_as_json(self, intervals: Intervals) -> dict[str, Any]:
        """Return intervals by row and task, and of the averages; None where there is none."""
        rows = {"tasks": self.tasks, "base": self.base, "experts": self.experts}
        data: dict[str, Any] = {
            name: {task: intervals.of_task(metrics) for task, metrics in row.items()}
            for name, row in rows.items()
        }
        average = None if self.average is None else intervals.of_average([*self.tasks.values()])
        normalised = None
        if self.normalised_average is not None:
            metrics = self.main_metrics
            row = [(metrics[task], self.tasks[task], self.experts[task]) for task in self.tasks]
            normalised = intervals.of_normalised(row)
        return {**data, "average": average, "normalised_average": normalised}

    def _within_chance(self) -> list[str]:
        tasks = find_within_chance(self.main_metrics, self.base, self.experts)
        return list(dict.fromkeys([*self.within_chance, *tasks]))

    def _metrics_as_json(self) -> dict[str, dict[str, Any]]:
        return {
            task: {name: _meaning(self.metric(task, name)) for name in metrics}
            for task, metrics in self.tasks.items()
        }


def _without_outcomes(row: Mapping[str, Metrics]) -> dict[str, Metrics]:
    return {task: dict(metrics) for task, metrics in row.items()}


def _meaning(metric: Metric) -> dict[str, Any]:
    noted = {"is_noted": True} if metric.is_noted else {}
    return {"unit": metric.unit, "higher_is_better": metric.higher_is_better, **noted}


def _declared(stored: Any) -> Iterator[tuple[str, dict[str, Metric]]]:  # noqa: ANN401 - from a file
    """Yield by task what is not taken for granted of metrics."""
    known = _adapter(Mapping[str, Mapping[str, dict[str, Any]]]).validate_python(stored)
    for task, metrics in known.items():
        read = {
            name: _adapter(Metric).validate_python({"name": name, **about})
            for name, about in metrics.items()
        }
        if special := {name: each for name, each in read.items() if each != Metric(name)}:
            yield task, special


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a type
    """Return what validates a type, made once: that takes longer than a report."""
    return TypeAdapter(kind)


def _plain(figures: Any) -> Any:  # noqa: ANN401 - numbers in mappings
    """Return figures as JSON has them."""
    if isinstance(figures, Mapping):
        return {name: _plain(each) for name, each in figures.items()}
    return None if figures is None else as_json(figures)


def how_to_measure(directory: Path) -> str:
    """Say how a model is measured for which no tasks, or no way to build it, are recorded."""
    return (
        f"If it is of a family that a pool knows, name it: fuse evaluate {directory} --pool NAME; "
        "see: fuse list pools\nAny other model is measured with its own library."
    )
