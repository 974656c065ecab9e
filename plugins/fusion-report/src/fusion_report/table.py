"""The table of a page: one row per model and one column per task, with marks and notes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fusion_core import Report
from fusion_core.commands import Intervals, below_base_warnings, build_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import Metric, MetricValues, Published
    from fusion_core.commands import Entry, Figure

    Figures = Mapping[str, MetricValues]

_FRACTION = "fraction"


@dataclass(frozen=True)
class Cell:
    """A cell with a score or an average."""

    text: str
    #: 95 % interval, such as ±1.1; or empty
    spread: str = ""
    #: further metrics to show
    notes: tuple[str, ...] = ()
    is_best: bool = False
    is_below_base: bool = False


@dataclass(frozen=True)
class Row:
    """A row with a model's scores; None if unknown."""

    name: str
    #: "base", "run", "experts" or "published"
    kind: str
    cells: Sequence[Cell | None]
    average: Cell | None = None
    normalised: Cell | None = None
    worst: Cell | None = None
    marks: Sequence[str] = ()


class PageTable:
    """Reports of runs side by side, by name; `intervals` adds 95 % intervals."""

    def __init__(self, reports: Mapping[str, Report], *, intervals: bool = False) -> None:
        self.reports = reports
        self._all = build_table(reports, Intervals() if intervals else None)
        #: tasks on which all runs were measured by the same main metric
        self.shared = self._all.shared
        lines = [entry for entry in self._all.entries if entry.is_task]
        #: one column per task and main metric
        self.lines = [entry for entry in lines if not entry.metric.is_noted]
        self._noted = [entry for entry in lines if entry.metric.is_noted]
        self._averages = {entry.label: entry for entry in self._all.entries if not entry.is_task}
        #: task name -> main metric
        self.metrics: dict[str, Metric] = {
            entry.label: entry.metric for entry in reversed(self.lines)
        }

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks."""
        return list(dict.fromkeys(entry.label for entry in self.lines))

    @property
    def unit(self) -> str:
        """The common metric of all scores; empty if metrics differ."""
        metrics = {str(entry.metric) for entry in self.lines}
        return metrics.pop() if len(metrics) == 1 else ""

    @property
    def interval_note(self) -> str:
        """The meaning of the intervals, or why there are none; empty for a table without them."""
        return self._all.interval_note

    @property
    def rows(self) -> list[Row]:
        """The rows of the base, the runs and the experts."""
        return [self._row(number) for number in range(len(self._all.headings))]

    @property
    def published(self) -> list[tuple[Published, list[Row]]]:
        """Published results for the same models, with their rows on these tasks."""
        families = {
            report.published.family: report.published
            for report in self.reports.values()
            if report.published is not None
        }
        return [
            (published, rows)
            for published in families.values()
            if (rows := [*self._published_rows(published)])
        ]

    @property
    def warnings(self) -> list[str]:
        """One warning per report with experts that score below the base on their own task."""
        return below_base_warnings(self.reports)

    def over_shared(self, report: Report) -> Report:
        """Return a report restricted to the tasks of all runs."""
        return report.over(self.shared)

    def _row(self, number: int) -> Row:
        heading = self._all.headings[number]
        run = number - self._all.first
        is_run = 0 <= run < len(self.reports)
        kind = "run" if is_run else "base" if run < 0 else "experts"
        cells = [self._cell(entry, number, is_run=is_run) for entry in self.lines]
        average, share = (self._average(name, number) for name in ("average", "normalised"))
        marks = [
            *(_marks(self.reports[heading]) if is_run else ()),
            *self._memory_marks("merged" if is_run else kind, heading),
        ]
        return Row(heading, kind, cells, average, share, self._worst(number), marks)

    def _cell(self, entry: Entry, number: int, *, is_run: bool) -> Cell | None:
        if (plain := self._plain_cell(entry, number)) is None:
            return None
        notes = tuple(
            f"{other.metric.name} {other.shown(figure)}"
            for other in self._noted
            if other.label == entry.label and (figure := other.figures[number]) and figure.value
        )
        if not is_run:
            return replace(plain, notes=notes)
        is_best = self._is_best(entry, number)
        below = entry.label in tasks_below_base([*self.reports.values()][number - self._all.first])
        return replace(plain, notes=notes, is_best=is_best, is_below_base=below)

    def _plain_cell(self, entry: Entry, number: int) -> Cell | None:
        figure = entry.figures[number]
        text, _, spread = entry.shown(figure).partition(" ")
        return None if figure is None else Cell(text, spread)

    def _average(self, name: str, number: int) -> Cell | None:
        return self._plain_cell(self._averages[name], number) if name in self._averages else None

    def _worst(self, number: int) -> Cell | None:
        """Return the worst score with the first task that has it."""
        if (worst := self._average("worst", number)) is None:
            return None
        figures = {entry.label: entry.figures[number] for entry in self.lines}
        value = self._averages["worst"].figures[number]
        tasks = [task for task in self.shared if _equal(figures[task], value)]
        return replace(worst, notes=tuple(tasks[:1]))

    def _is_best(self, entry: Entry, number: int) -> bool:
        """Tell whether a run is the best of several on a task."""
        first = self._all.first
        runs = entry.figures[first : first + len(self.reports)]
        values = [run.value for run in runs if run is not None]
        figure = entry.figures[number]
        assert figure is not None  # noqa: S101 - the caller checked
        is_comparable = self.is_comparable and len(values) > 1 and math.isfinite(figure.value)
        return is_comparable and not any(
            _is_better(entry.metric, value, figure.value) for value in values
        )

    @property
    def is_comparable(self) -> bool:
        """Whether all runs were measured on the same examples."""
        return len({report.measured_on for report in self.reports.values()}) == 1

    def _memory_marks(self, kind: str, heading: str) -> list[str]:
        """Return the mark of rows whose scores an earlier run measured."""
        run = heading.removeprefix(f"{kind} of ")
        reports = [self.reports[run]] if run in self.reports else [*self.reports.values()]
        return ["remembered"] if any(kind in report.remembered for report in reports) else []

    def _published_rows(self, published: Published) -> Iterator[Row]:
        for name, row in published.rows.items():
            known = {
                entry.label: {entry.metric.name: row[entry.label]}
                for entry in self.lines
                if entry.label in row and entry.metric.unit == _FRACTION
            }
            if known:
                yield self._published_row(name, Report(known))

    def _published_row(self, name: str, report: Report) -> Row:
        cells = [
            Cell(entry.metric.shown(_main(report.tasks[entry.label])))
            if entry.label in report.tasks
            else None
            for entry in self.lines
        ]
        averages = Row(name, "published", cells)
        if self.shared and report.tasks.keys() >= {*self.shared}:
            averages = PageTable({name: self.over_shared(report)}).rows[0]
        return replace(averages, kind="published", cells=cells, normalised=None)


def _equal(one: Figure | None, other: Figure | None) -> bool:
    return one is not None and other is not None and one.value == other.value


def worst_task(report: Report) -> tuple[str, str] | None:
    """Return the task with the worst score, and the score; None if metrics differ or are NaN."""
    if report.average is None or math.isnan(report.average):
        return None
    metrics = report.main_metrics
    pick = min if next(iter(metrics.values())).higher_is_better else max
    task = pick(report.tasks, key=lambda name: _main(report.tasks[name]))
    return task, metrics[task].shown(_main(report.tasks[task]))


def tasks_below_base(report: Report) -> list[str]:
    """Return the tasks on which the merge is worse than the base."""
    return [
        task
        for task, metric in report.main_metrics.items()
        if task in report.reference.base
        and _is_better(metric, _main(report.reference.base[task]), _main(report.tasks[task]))
    ]


def ratios(report: Report, figures: Figures) -> dict[str, float]:
    """Return scores divided by the experts' scores, by task.

    Leaves out tasks whose expert scores below the base.
    """
    below = {expert.task for expert in report.experts_below_base}
    shares = {
        task: metric.ratio(_main(figures[task]), _main(report.reference.experts[task]))
        for task, metric in report.main_metrics.items()
        if task in figures and task in report.reference.experts and task not in below
    }
    return {
        task: share for task, share in shares.items() if share is not None and math.isfinite(share)
    }


def _marks(report: Report) -> list[str]:
    """Return the marks of a run, which the page explains below the table."""
    marks = {"transductive": report.transductive, "needs the task": report.needs_task}
    return [name for name, applies in marks.items() if applies]


def _main(metrics: MetricValues) -> float:
    return next(iter(metrics.values()))


def _is_better(metric: Metric, one: float, other: float) -> bool:
    return one > other if metric.higher_is_better else one < other
