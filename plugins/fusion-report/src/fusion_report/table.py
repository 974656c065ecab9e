"""The table of a page: a row a model, a column a task, with what is to be seen of each figure."""

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
    """A figure of a model on a task, or an average."""

    text: str
    #: how sure it is: ±1.1, or empty
    spread: str = ""
    #: other metrics that are to be seen
    notes: tuple[str, ...] = ()
    is_best: bool = False
    is_below_base: bool = False


@dataclass(frozen=True)
class Row:
    """A model's figures; None for what is not known."""

    name: str
    #: "base", "run", "experts" or "published"
    kind: str
    cells: Sequence[Cell | None]
    average: Cell | None = None
    normalised: Cell | None = None
    worst: Cell | None = None
    marks: Sequence[str] = ()


class Table:
    """Reports of runs by name, side by side; with `intervals`, their figures have them."""

    def __init__(self, reports: Mapping[str, Report], *, intervals: bool = False) -> None:
        self.reports = reports
        self._all = build_table(reports, Intervals() if intervals else None)
        #: the tasks that every run was measured on by the same main metric
        self.shared = self._all.shared
        lines = [entry for entry in self._all.entries if entry.is_task]
        #: a column each: a task by its main metric
        self.lines = [entry for entry in lines if not entry.metric.is_noted]
        self._noted = [entry for entry in lines if entry.metric.is_noted]
        self._averages = {each.label: each for each in self._all.entries if not each.is_task}
        #: every task and its main metric
        self.metrics: dict[str, Metric] = {
            entry.label: entry.metric for entry in reversed(self.lines)
        }

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks."""
        return list(dict.fromkeys(entry.label for entry in self.lines))

    @property
    def unit(self) -> str:
        """What all figures are, where they are of one metric; else empty."""
        said = {str(entry.metric) for entry in self.lines}
        return said.pop() if len(said) == 1 else ""

    @property
    def rows(self) -> list[Row]:
        """The base, the runs and the experts."""
        return [self._row(number) for number in range(len(self._all.headings))]

    @property
    def published(self) -> list[tuple[Published, list[Row]]]:
        """What others published for the same models, and its rows that are about these tasks."""
        known = [
            report.published for report in self.reports.values() if report.published is not None
        ]
        found = {each.family: each for each in known}
        return [(each, rows) for each in found.values() if (rows := [*self._of(each)])]

    @property
    def warnings(self) -> list[str]:
        """Which experts score below the base on their own task."""
        return below_base_warnings(self.reports)

    def of(self, report: Report) -> Report:
        """Return a report on the tasks that all runs have."""
        return report.over(self.shared)

    def _row(self, number: int) -> Row:
        heading = self._all.headings[number]
        run = number - self._all.first
        is_run = 0 <= run < len(self.reports)
        kind = "run" if is_run else "base" if run < 0 else "experts"
        cells = [self._cell(entry, number, is_run=is_run) for entry in self.lines]
        average, share = (self._average(name, number) for name in ("average", "normalised"))
        marks = _marks(self.reports[heading]) if is_run else self._recalled(kind, heading)
        return Row(heading, kind, cells, average, share, self._worst(number), marks)

    def _cell(self, entry: Entry, number: int, *, is_run: bool) -> Cell | None:
        if (plain := self._shown(entry, number)) is None:
            return None
        notes = tuple(
            f"{other.metric.name} {other.shown(figure)}"
            for other in self._noted
            if other.label == entry.label and (figure := other.figures[number]) and figure.value
        )
        if not is_run:
            return replace(plain, notes=notes)
        is_best = self._is_best(entry, number)
        below = entry.label in below_base([*self.reports.values()][number - self._all.first])
        return replace(plain, notes=notes, is_best=is_best, is_below_base=below)

    def _shown(self, entry: Entry, number: int) -> Cell | None:
        figure = entry.figures[number]
        text, _, spread = entry.shown(figure).partition(" ")
        return None if figure is None else Cell(text, spread)

    def _average(self, name: str, number: int) -> Cell | None:
        return self._shown(self._averages[name], number) if name in self._averages else None

    def _worst(self, number: int) -> Cell | None:
        """Return the worst figure, and the first task that has it."""
        if (worst := self._average("worst", number)) is None:
            return None
        figures = {entry.label: entry.figures[number] for entry in self.lines}
        value = self._averages["worst"].figures[number]
        same = [task for task in self.shared if _equal(figures[task], value)]
        return replace(worst, notes=tuple(same[:1]))

    def _is_best(self, entry: Entry, number: int) -> bool:
        """Tell whether no run is better on a task, where there is a choice."""
        first = self._all.first
        runs = entry.figures[first : first + len(self.reports)]
        values = [run.value for run in runs if run is not None]
        own = entry.figures[number]
        assert own is not None  # noqa: S101 - the caller looked
        is_rival = len(values) > 1 and math.isfinite(own.value)
        return is_rival and not any(_better(entry.metric, each, own.value) for each in values)

    def _recalled(self, kind: str, heading: str) -> list[str]:
        """Say what was not measured for these runs, or the one that a row is about."""
        about = heading.removeprefix(f"{kind} of ")
        reports = [self.reports[about]] if about in self.reports else [*self.reports.values()]
        return ["remembered"] if any(kind in report.remembered for report in reports) else []

    def _of(self, published: Published) -> Iterator[Row]:
        for name, row in published.rows.items():
            known = {
                entry.label: {entry.metric.name: row[entry.label]}
                for entry in self.lines
                if entry.label in row and entry.metric.unit == _FRACTION
            }
            if known:
                yield self._published(name, Report(known))

    def _published(self, name: str, report: Report) -> Row:
        cells = [
            Cell(entry.metric.shown(_main(report.tasks[entry.label])))
            if entry.label in report.tasks
            else None
            for entry in self.lines
        ]
        averages = Row(name, "published", cells)
        if self.shared and report.tasks.keys() >= {*self.shared}:
            averages = Table({name: self.of(report)}).rows[0]
        return replace(averages, kind="published", cells=cells, normalised=None)


def _equal(one: Figure | None, other: Figure | None) -> bool:
    return one is not None and other is not None and one.value == other.value


def worst_of(report: Report) -> tuple[str, str] | None:
    """Return the task with the worst figure, and that; None where they are of several kinds."""
    if report.average is None:
        return None
    metrics = report.main_metrics
    pick = min if next(iter(metrics.values())).higher_is_better else max
    task = pick(report.tasks, key=lambda name: _main(report.tasks[name]))
    return task, metrics[task].shown(_main(report.tasks[task]))


def below_base(report: Report) -> list[str]:
    """Return the tasks on which a merge is worse than its base."""
    return [
        task
        for task, metric in report.main_metrics.items()
        if task in report.base
        and _better(metric, _main(report.base[task]), _main(report.tasks[task]))
    ]


def ratios(report: Report, figures: Figures) -> dict[str, float]:
    """Return how near figures come to the experts', by task: 1 for as good.

    Tasks whose expert scores below the base have no such number.
    """
    below = {expert.task for expert in report.experts_below_base}
    found = {
        task: metric.ratio(_main(figures[task]), _main(report.experts[task]))
        for task, metric in report.main_metrics.items()
        if task in figures and task in report.experts and task not in below
    }
    return {
        task: ratio for task, ratio in found.items() if ratio is not None and math.isfinite(ratio)
    }


def _marks(report: Report) -> list[str]:
    """Return what is to be known of a run's figures."""
    said = {"transductive": report.transductive, "needs the task": report.needs_task}
    return [name for name, holds in said.items() if holds]


def _main(metrics: MetricValues) -> float:
    return next(iter(metrics.values()))


def _better(metric: Metric, one: float, other: float) -> bool:
    return one > other if metric.higher_is_better else one < other
