"""The layout of a table of reports: one row per task, one column per model.

The columns are the base, the measured models, and the experts. The last rows are averages over the
tasks that all reports share, if averages of them are meaningful.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from fusion_core.contracts.measurements import (
    Measured,
    Metric,
    MetricValues,
    Reference,
    main_value,
    mean_ratio,
)
from fusion_core.contracts.table import Entry, Figure, ReportTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from fusion_core.contracts.below_base import BelowBase
    from fusion_core.contracts.bootstrap import Interval
    from fusion_core.contracts.intervals import Intervals

    #: A row of the table: a task and one of its metrics.
    Line = tuple[str, Metric]
    #: The metrics of one model by row.
    Cells = Mapping[Line, MetricValues]

AVERAGE, NORMALISED, WORST = "average", "normalised", "worst"


class Measurements(Protocol):
    """The part of a report that the table needs; `Report` implements it."""

    @property
    def tasks(self) -> Mapping[str, MetricValues]:
        """The model's metrics by task."""

    @property
    def reference(self) -> Reference:
        """The measurements of the base and of each task's own expert."""

    @property
    def experts_below_base(self) -> Collection[BelowBase]:
        """The experts that score below the base on their own task."""

    @property
    def main_metrics(self) -> Mapping[str, Metric]:
        """The main metric of every task."""

    def metric(self, task: str, name: str) -> Metric:
        """Return the declaration of a task's metric."""


@dataclass(frozen=True)
class _Column:
    """A model's metrics, and the experts' metrics that normalise them."""

    heading: str
    cells: Cells
    references: Cells
    intervals: Intervals | None = None

    def task(self, line: Line) -> Figure | None:
        if line not in self.cells:
            return None
        metrics, name = self.cells[line], line[1].name
        if name != next(iter(metrics)):
            return Figure(metrics[name])
        return self._figure(metrics[name], lambda intervals: intervals.of_task(metrics))

    def average(self, lines: Sequence[Line]) -> Figure | None:
        """Average the column; None if it lacks a row, since columns could not be compared."""
        if not lines or not all(line in self.cells for line in lines):
            return None
        row = [self.cells[line] for line in lines]
        mean = sum(map(main_value, row)) / len(row)
        return self._figure(mean, lambda intervals: intervals.of_average(row))

    def normalised(self, lines: Sequence[Line]) -> Figure | None:
        """Return the mean of score / the expert's score, inverted if lower is better."""

        def score(cells: Cells, line: Line) -> float:
            return main_value(cells[line]) if line in cells else math.nan

        mean = mean_ratio(
            (line[1], score(self.cells, line), score(self.references, line)) for line in lines
        )
        if mean is None:
            return None
        row = [(line[1], self.cells.get(line, {}), self.references[line]) for line in lines]
        return self._figure(mean, lambda intervals: intervals.of_normalised(row))

    def worst(self, lines: Sequence[Line]) -> Figure | None:
        """Return the worst of the figures that `average` averages."""
        average = self.average(lines)
        if average is None or math.isnan(average.value):
            return average
        worst = min if lines[0][1].higher_is_better else max
        metrics = worst((self.cells[line] for line in lines), key=main_value)
        return self._figure(main_value(metrics), lambda intervals: intervals.of_task(metrics))

    def _figure(self, value: float, interval: Callable[[Intervals], Interval | None]) -> Figure:
        if self.intervals is None:
            return Figure(value)
        return Figure(value, partial(interval, self.intervals))


def build_table(
    reports: Mapping[str, Measurements], intervals: Intervals | None = None
) -> ReportTable:
    """Lay out reports as one table; with `intervals`, its figures have intervals.

    A base, or experts, on which the reports agree get one column; otherwise they get one column per
    report. Experts that score below the base normalise nothing.
    """
    experts = {name: _cells(report, report.reference.experts) for name, report in reports.items()}
    fitting = {name: _drop_below_base(experts[name], [reports[name]]) for name in reports}
    agree = _agree(experts.values())
    by_all = _drop_below_base(_union(experts.values()), reports.values()) if agree else {}
    bases = {name: _cells(report, report.reference.base) for name, report in reports.items()}
    columns = _reference_columns("base", bases, fitting, by_all)
    first = len(columns)
    columns += [
        _Column(name, _cells(report, report.tasks), fitting[name])
        for name, report in reports.items()
    ]
    columns += _reference_columns("experts", experts, fitting, by_all)
    columns = [replace(column, intervals=intervals) for column in columns]
    lines = [*lines_of(reports), *_noted_lines(columns)]
    entries = [Entry(*line, [column.task(line) for column in columns]) for line in lines]
    entries += _summaries(columns, shared_lines(reports))
    headings = [column.heading for column in columns]
    return ReportTable(headings, entries, first, shared_tasks(reports), intervals)


def _summaries(columns: Sequence[_Column], shared: Sequence[Line]) -> Iterator[Entry]:
    """Yield the meaningful averages; an empty row shows that no task is shared."""
    comparable = are_comparable(shared)
    if comparable:
        metric = shared[0][1] if shared else Metric("")
        yield Entry(AVERAGE, metric, [column.average(shared) for column in columns], is_task=False)
    normalised = [column.normalised(shared) for column in columns]
    if any(normalised):
        yield Entry(NORMALISED, Metric(NORMALISED), normalised, is_task=False)
    if comparable and len(shared) > 1:
        worst = [column.worst(shared) for column in columns]
        yield Entry(WORST, shared[0][1], worst, is_task=False)


def shared_tasks(reports: Mapping[str, Measurements]) -> list[str]:
    """Return the tasks that every report has, with the same main metric."""
    first, *others = (report.main_metrics for report in reports.values())
    return [task for task in first if all(other.get(task) == first[task] for other in others)]


def lines_of(reports: Mapping[str, Measurements]) -> list[Line]:
    """Return one row per task and main metric of the reports."""
    return list(dict.fromkeys(line for r in reports.values() for line in r.main_metrics.items()))


def shared_lines(reports: Mapping[str, Measurements]) -> list[Line]:
    """Return the rows of the tasks that every report has."""
    tasks = shared_tasks(reports)
    return [line for line in lines_of(reports) if line[0] in tasks]


def are_comparable(lines: Sequence[Line]) -> bool:
    """Tell whether these rows have one unit and direction, so that an average is meaningful."""
    return all(metric.agrees(lines[0][1]) for _, metric in lines)


def _cells(report: Measurements, tasks: Mapping[str, MetricValues]) -> Cells:
    """Return each task's metrics under its main metric and under every noted one."""
    return {
        (task, metric): metrics
        for task, metrics in tasks.items()
        for number, name in enumerate(metrics)
        for metric in [report.metric(task, name)]
        if number == 0 or metric.is_noted
    }


def _drop_below_base(experts: Cells, reports: Iterable[Measurements]) -> Cells:
    """Leave out the tasks on which any report has an expert below the base."""
    below = {expert.task for report in reports for expert in report.experts_below_base}
    return {line: metrics for line, metrics in experts.items() if line[0] not in below}


def _noted_lines(columns: Sequence[_Column]) -> list[Line]:
    """Return the rows of noted metrics that are nonzero in some column."""
    noted = dict.fromkeys(line for column in columns for line in column.cells if line[1].is_noted)
    return [
        line
        for line in noted
        if any(column.cells[line][line[1].name] for column in columns if line in column.cells)
    ]


def _reference_columns(
    heading: str, cells: Mapping[str, Cells], references: Mapping[str, Cells], by_all: Cells
) -> list[_Column]:
    """Return one column if the reports agree, otherwise one column per report."""
    known = {name: column for name, column in cells.items() if column}
    if not _agree(known.values()):
        return [
            _Column(f"{heading} of {name}", column, references[name])
            for name, column in known.items()
        ]
    return [_Column(heading, _union(known.values()), by_all)] if known else []


def _union(columns: Iterable[Cells]) -> Cells:
    """Join columns; of equal values, those with outcomes of single examples count."""
    union: dict[Line, MetricValues] = {}
    for column in columns:
        for line, metrics in column.items():
            if not isinstance(union.get(line), Measured):
                union[line] = metrics
    return union


def _agree(columns: Iterable[Cells]) -> bool:
    """Tell whether no row has two different values; NaN equals NaN."""
    seen: dict[Line, float] = {}
    for column in columns:
        for line, metrics in column.items():
            value = metrics[line[1].name]
            known = seen.setdefault(line, value)
            if known != value and not (math.isnan(known) and math.isnan(value)):
                return False
    return True
