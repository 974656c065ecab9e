"""The report: the tasks' measurements of a model, and the data of `report.json`."""

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
from fusion_core.contracts.measurements import (
    Metric,
    MetricValues,
    Reference,
    main_value,
    mean_main_value,
    mean_ratio,
    numbers_as_json,
)
from fusion_core.contracts.outcomes import SCHEMA as OUTCOMES_SCHEMA
from fusion_core.contracts.outcomes import decode_row, encode_row
from fusion_core.contracts.table_layout import are_comparable, build_table

if TYPE_CHECKING:
    from fusion_core.contracts.intervals import Intervals

SCHEMA = 2
REPORT = "report.json"
#: The fields that `report.json` stores under their own names.
_STORED = (
    *("tasks", "transductive", "measured_on", "published", "remembered", "needs_task"),
    *("conditions", "chosen", "within_chance"),
)
#: The names of the fields of `reference` in schema 1.
_SCHEMA_1_NAMES = {"base": "pretrained", "experts": "individual"}


@dataclass(frozen=True, slots=True)
class Published:
    """Published scores of other methods, to compare with a run's own.

    Example::

        Published(
            family="the checkpoints of the paper",
            source="arXiv:0000.00000, table 1",
            rows={"their method": {"latin": 0.75, "greek": 0.69}},
        )
    """

    #: the checkpoints that were measured; reports of another family are not compared
    family: str
    #: the paper and table
    source: str
    #: the main metric by method and task, as a fraction
    rows: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Report:
    """The tasks' measurements of one model, of its base and of its experts.

    The first metric of a task is its *main metric*. Averages are over main metrics.
    """

    tasks: Mapping[str, MetricValues]
    #: the measurements of the base and of each task's own expert
    reference: Reference = field(default_factory=Reference)
    #: whether the algorithm adapted on the (unlabeled) test examples; None if it used no data
    transductive: bool | None = None
    #: the measured test examples, in words; None for all of them
    measured_on: str | None = None
    #: published scores for the same models and tasks
    published: Published | None = None
    #: the metrics that tasks declare, by task and name; all others are fractions
    metrics: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    #: the tasks whose measurements come from an earlier command, by row: `base`, `experts`, or
    #: `merged` for the model itself
    remembered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: whether tasks have weights or adapters of their own, so that inference needs the task
    needs_task: bool = False
    #: how tasks were measured, by task: versions, few-shot examples, seeds, ...
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: how the run's options were chosen, in words; None if unknown
    chosen: str | None = None
    #: tasks whose expert scores below the base, but not significantly; needed for reports without
    #: outcomes
    within_chance: tuple[str, ...] = ()

    def metric(self, task: str, name: str) -> Metric:
        """Return the declaration of a task's metric."""
        return self.metrics.get(task, {}).get(name) or Metric(name)

    @property
    def main_metrics(self) -> Mapping[str, Metric]:
        """The main metric of every task."""
        return {
            task: self.metric(task, next(iter(metrics))) for task, metrics in self.tasks.items()
        }

    @property
    def average(self) -> float | None:
        """The mean of the tasks' main metrics; None unless all have one unit and direction."""
        lines = list(self.main_metrics.items())
        return mean_main_value(self.tasks) if lines and are_comparable(lines) else None

    @property
    def normalised_average(self) -> float | None:
        """The mean of score / the expert's score, inverted if lower is better.

        None if a task lacks such a ratio, or if an expert scores below the base.
        """
        if self.experts_below_base:
            return None
        experts = {task: main_value(metrics) for task, metrics in self.reference.experts.items()}
        return mean_ratio(
            (metric, main_value(self.tasks[task]), experts.get(task, math.nan))
            for task, metric in self.main_metrics.items()
        )

    @cached_property
    def experts_below_base(self) -> tuple[BelowBase, ...]:
        """The experts that score below the base on their own task, beyond chance.

        Experts and tasks then probably do not belong together.
        """
        return tuple(find_below_base(self.main_metrics, self.reference, self.within_chance))

    def over(self, tasks: Collection[str]) -> Self:
        """Return the report restricted to these tasks, and its averages with it."""
        return replace(self, tasks={name: self.tasks[name] for name in tasks})

    def plot(self) -> NoReturn:
        """Raise an `ImportError` that names the replacement, `fusion_report.plot`."""
        raise moved_name_error("Report.plot")

    def to_dataframe(self) -> NoReturn:
        """Raise an `ImportError` that names the replacement, `fusion_report.to_dataframe`."""
        raise moved_name_error("Report.to_dataframe")

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        notes = [describe_below_base(self.experts_below_base)]
        if self.transductive:
            notes.append("transductive: the algorithm saw the test examples, without their labels")
        return build_table({"merged": self}).as_html("; ".join(filter(None, notes)))

    def as_json(self, intervals: Intervals | None = None) -> dict[str, Any]:
        """Return the content of `report.json`, documented in docs/reference/report.md.

        With `intervals`, include the figures' intervals, which no file stores.
        """
        rows = {"base": self.reference.base, "experts": self.reference.experts}
        below = {expert.task: expert.as_json() for expert in self.experts_below_base}
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "average": numbers_as_json(self.average),
            "normalised_average": numbers_as_json(self.normalised_average),
            "experts_below_base": below,
            "tasks": numbers_as_json(self.tasks),
            "metrics": {
                task: {name: _metric_as_json(self.metric(task, name)) for name in metrics}
                for task, metrics in self.tasks.items()
            },
            "transductive": self.transductive,
            "measured_on": self.measured_on,
            "reference": {name: numbers_as_json(row) for name, row in rows.items() if row},
            "remembered": {name: list(tasks) for name, tasks in self.remembered.items()},
        }
        if self.needs_task:
            content["needs_task"] = True
        if self.conditions:
            content["conditions"] = self.conditions
        if self.chosen is not None:
            content["chosen"] = self.chosen
        if within_chance := self._find_within_chance():
            content["within_chance"] = within_chance
        if self.published is not None:
            content["published"] = asdict(self.published)
        if intervals is not None:
            content["intervals"] = self._intervals_as_json(intervals)
        return content

    @classmethod
    def from_json(cls, content: Any) -> Self:  # noqa: ANN401 - whatever a file holds
        """Return the report that `as_json` stored; raises `ValueError` for invalid content."""
        if not isinstance(content, dict) or content.get("schema") not in {1, SCHEMA}:
            raise ValueError(f"expected schema {SCHEMA}")
        fields = {name: content[name] for name in _STORED if name in content}
        stored = _adapter(Mapping[str, Any]).validate_python(content.get("reference"))
        fields["reference"] = {
            name: stored.get(old_name if content["schema"] == 1 else name, {})
            for name, old_name in _SCHEMA_1_NAMES.items()
        }
        fields["metrics"] = _read_metrics(content.get("metrics", {}))
        kind: Any = cls
        report: Self = _adapter(kind).validate_python(fields)
        rows = report._rows().values()
        if not report.tasks or not all(metrics for row in rows for metrics in row.values()):
            raise ValueError("missing tasks, or a task without metrics")
        return report

    def outcomes_as_json(self) -> dict[str, Any]:
        """Return the content of `outcomes.json`; empty if no task keeps outcomes."""
        rows = {name: encode_row(row) for name, row in self._rows().items()}
        stored = {name: row for name, row in rows.items() if row}
        return {"schema": OUTCOMES_SCHEMA, **stored} if stored else {}

    def with_outcomes(self, content: Any) -> Self:  # noqa: ANN401 - whatever a file holds
        """Return the report with the outcomes that `outcomes_as_json` stored.

        Raises `ValueError` for invalid content, or outcomes of another report.
        """
        if not isinstance(content, dict) or content.get("schema") != OUTCOMES_SCHEMA:
            raise ValueError(f"expected schema {OUTCOMES_SCHEMA}")
        rows = {name: decode_row(row, content.get(name, {})) for name, row in self._rows().items()}
        reference = Reference(rows["base"], rows["experts"])
        return replace(self, tasks=rows["tasks"], reference=reference)

    def without_outcomes(self) -> Self:
        """Return the report without the outcomes of base and experts; keep `within_chance`."""
        reference = self.reference.without_outcomes()
        return replace(self, reference=reference, within_chance=tuple(self._find_within_chance()))

    def _rows(self) -> dict[str, Mapping[str, MetricValues]]:
        """Return the rows by their names in `outcomes.json`."""
        return {
            "tasks": self.tasks,
            "base": self.reference.base,
            "experts": self.reference.experts,
        }

    def _find_within_chance(self) -> list[str]:
        tasks = find_within_chance(self.main_metrics, self.reference)
        return list(dict.fromkeys([*self.within_chance, *tasks]))

    def _intervals_as_json(self, intervals: Intervals) -> dict[str, Any]:
        """Return the intervals by row and task, and those of the averages; None without one."""
        content: dict[str, Any] = {
            name: {task: intervals.of_task(metrics) for task, metrics in row.items()}
            for name, row in self._rows().items()
        }
        average = None if self.average is None else intervals.of_average([*self.tasks.values()])
        normalised = None
        if self.normalised_average is not None:
            metrics, experts = self.main_metrics, self.reference.experts
            lines = [(metrics[task], self.tasks[task], experts[task]) for task in self.tasks]
            normalised = intervals.of_normalised(lines)
        return {**content, "average": average, "normalised_average": normalised}


def _metric_as_json(metric: Metric) -> dict[str, Any]:
    noted = {"is_noted": True} if metric.is_noted else {}
    return {"unit": metric.unit, "higher_is_better": metric.higher_is_better, **noted}


def _read_metrics(stored: Any) -> dict[str, dict[str, Metric]]:  # noqa: ANN401 - from a file
    """Return the metrics by task and name that differ from the default declaration."""
    declarations = _adapter(Mapping[str, Mapping[str, dict[str, Any]]]).validate_python(stored)
    metrics = {
        task: {
            name: _adapter(Metric).validate_python({"name": name, **fields})
            for name, fields in by_name.items()
        }
        for task, by_name in declarations.items()
    }
    special = {
        task: {name: metric for name, metric in by_name.items() if metric != Metric(name)}
        for task, by_name in metrics.items()
    }
    return {task: by_name for task, by_name in special.items() if by_name}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a type
    """Return the validator of a type; building one takes longer than validating a report."""
    return TypeAdapter(kind)
