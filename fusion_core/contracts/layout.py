"""The layout of a table of reports: one entry per task, with one figure per model.

The base comes first, then the models that were measured, then the experts. The last entries are
averages over the tasks that all reports have, where they mean something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from fusion_core.contracts.measures import Metric, Metrics, main, mean_ratio
from fusion_core.contracts.table import Entry, Figure, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from fusion_core.contracts.below_base import BelowBase
    from fusion_core.contracts.bootstrap import Interval
    from fusion_core.contracts.intervals import Intervals

    #: A row of the table: a task, and the metric that its values are of.
    Line = tuple[str, Metric]
    Row = Mapping[str, Metrics]

AVERAGE, NORMALISED, WORST = "average", "normalised", "worst"


class Rows(Protocol):
    """What the table needs of a report."""

    @property
    def tasks(self) -> Row:
        """What was measured of the model."""

    @property
    def base(self) -> Row:
        """What was measured of the base."""

    @property
    def experts(self) -> Row:
        """What was measured of each task's own expert."""

    @property
    def experts_below_base(self) -> Collection[BelowBase]:
        """The experts that score below the base on their own task."""

    @property
    def main_metrics(self) -> Mapping[str, Metric]:
        """Every task's main metric."""

    def metric(self, task: str, name: str) -> Metric:
        """Return what is known of a task's metric."""


@dataclass(frozen=True)
class _Column:
    """A model's metrics by task and metric, and the experts' that they are normalised by."""

    heading: str
    cells: Mapping[Line, Metrics]
    references: Mapping[Line, Metrics]
    intervals: Intervals | None = None

    def figure(self, line: Line) -> Figure | None:
        if line not in self.cells:
            return None
        metrics, name = self.cells[line], line[1].name
        if name != next(iter(metrics)):
            return Figure(metrics[name])
        return self._figure(metrics[name], lambda over: over.of_task(metrics))

    def average(self, lines: Sequence[Line]) -> Figure | None:
        """Average a column; of fewer tasks than the others it would compare with none of them."""
        if not lines or not all(line in self.cells for line in lines):
            return None
        row = [self.cells[line] for line in lines]
        return self._figure(sum(map(main, row)) / len(row), lambda over: over.of_average(row))

    def normalised(self, lines: Sequence[Line]) -> Figure | None:
        """Return the mean of figure / the expert's, or its inverse where lower is better."""
        mean = mean_ratio(
            (line[1], _main(self.cells, line), _main(self.references, line)) for line in lines
        )
        if mean is None:
            return None
        row = [(line[1], self.cells.get(line, {}), self.references[line]) for line in lines]
        return self._figure(mean, lambda over: over.of_normalised(row))

    def worst(self, lines: Sequence[Line]) -> Figure | None:
        """Return the worst of the figures that the average is of."""
        average = self.average(lines)
        if average is None or math.isnan(average.value):
            return average
        worst = min if lines[0][1].higher_is_better else max
        metrics = worst((self.cells[line] for line in lines), key=main)
        return self._figure(main(metrics), lambda over: over.of_task(metrics))

    def _figure(self, value: float, spread: Callable[[Intervals], Interval | None]) -> Figure:
        return (
            Figure(value)
            if self.intervals is None
            else Figure(value, partial(spread, self.intervals))
        )


def table_of(reports: Mapping[str, Rows], intervals: Intervals | None = None) -> Table:
    """Lay reports out: the base, the models, the experts; averages over common tasks.

    A base or experts that reports share stand once, or as often as they differ. Nothing is
    normalised by experts that score below the base. With `intervals`, figures have them.
    """
    experts = {name: _cells(report, report.experts) for name, report in reports.items()}
    fitting = {name: _fitting(experts[name], [report]) for name, report in reports.items()}
    agree = _agree(experts.values())
    by_all = _fitting(_merged(experts.values()), reports.values()) if agree else {}
    bases = {name: _cells(report, report.base) for name, report in reports.items()}
    columns = _shared("base", bases, fitting, by_all)
    first = len(columns)
    columns += [_Column(name, _cells(r, r.tasks), fitting[name]) for name, r in reports.items()]
    columns += _shared("experts", experts, fitting, by_all)
    columns = [replace(column, intervals=intervals) for column in columns]
    lines = [*lines_of(reports), *_noted(columns)]
    entries = [Entry(*line, [column.figure(line) for column in columns]) for line in lines]
    entries += _summaries(columns, shared_lines(reports))
    return Table([column.heading for column in columns], entries, first, common(reports), intervals)


def _summaries(columns: Sequence[_Column], shared: Sequence[Line]) -> Iterator[Entry]:
    """Yield averages where they mean something; a row of nothing says that no task is shared."""
    alike = are_alike(shared)
    if alike:
        metric = shared[0][1] if shared else Metric("")
        yield Entry(AVERAGE, metric, [column.average(shared) for column in columns], is_task=False)
    shares = [column.normalised(shared) for column in columns]
    if any(shares):
        yield Entry(NORMALISED, Metric(NORMALISED), shares, is_task=False)
    if alike and len(shared) > 1:
        worst = [column.worst(shared) for column in columns]
        yield Entry(WORST, shared[0][1], worst, is_task=False)


def _main(cells: Mapping[Line, Metrics], line: Line) -> float:
    return main(cells[line]) if line in cells else math.nan


def common(reports: Mapping[str, Rows]) -> list[str]:
    """Return the tasks that every report has, by the same main metric."""
    first, *others = (report.main_metrics for report in reports.values())
    return [task for task in first if all(other.get(task) == first[task] for other in others)]


def lines_of(reports: Mapping[str, Rows]) -> list[Line]:
    """Return the rows of tasks."""
    return list(dict.fromkeys(line for r in reports.values() for line in r.main_metrics.items()))


def shared_lines(reports: Mapping[str, Rows]) -> list[Line]:
    """Return the rows that every report has."""
    names = common(reports)
    return [line for line in lines_of(reports) if line[0] in names]


def are_alike(lines: Sequence[Line]) -> bool:
    """Tell whether averages of these rows mean something."""
    return all(metric.agrees(lines[0][1]) for _, metric in lines)


def _cells(report: Rows, row: Row) -> Mapping[Line, Metrics]:
    """Return metrics by line: the main and the noted ones."""
    return {
        (task, metric): metrics
        for task, metrics in row.items()
        for number, name in enumerate(metrics)
        for metric in [report.metric(task, name)]
        if number == 0 or metric.is_noted
    }


def _fitting(experts: Mapping[Line, Metrics], reports: Iterable[Rows]) -> Mapping[Line, Metrics]:
    """Return the cells of the experts that score below the base in none of the reports."""
    below = {expert.task for report in reports for expert in report.experts_below_base}
    return {line: metrics for line, metrics in experts.items() if line[0] not in below}


def _noted(columns: Sequence[_Column]) -> list[Line]:
    """Return the rows of noted metrics, which are shown where they are not zero."""
    noted = dict.fromkeys(line for column in columns for line in column.cells if line[1].is_noted)
    return [
        line
        for line in noted
        if any(column.cells[line][line[1].name] for column in columns if line in column.cells)
    ]


def _shared(
    heading: str,
    cells: Mapping[str, Mapping[Line, Metrics]],
    references: Mapping[str, Mapping[Line, Metrics]],
    by_all: Mapping[Line, Metrics],
) -> list[_Column]:
    """Return one column that reports share, or one for each where they differ."""
    known = {name: column for name, column in cells.items() if column}
    if not _agree(known.values()):
        return [_Column(f"{heading} of {n}", own, references[n]) for n, own in known.items()]
    return [_Column(heading, _merged(known.values()), by_all)] if known else []


def _merged(columns: Iterable[Mapping[Line, Metrics]]) -> Mapping[Line, Metrics]:
    return {line: metrics for column in columns for line, metrics in column.items()}


def _agree(columns: Iterable[Mapping[Line, Metrics]]) -> bool:
    """Tell whether no row has two values."""
    seen: dict[Line, float] = {}
    return all(
        seen.setdefault(line, metrics[line[1].name]) == metrics[line[1].name]
        for column in columns
        for line, metrics in column.items()
    )
