"""The table of a page: a row a model, a column a task; averages over the tasks of all runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import Metric, Metrics, Published, Report

    Figures = Mapping[str, Metrics]

_FRACTION = "fraction"


@dataclass(frozen=True)
class Cell:
    """A figure of a model on a task."""

    text: str
    #: other metrics that are to be seen
    notes: tuple[str, ...] = ()
    is_best: bool = False
    is_below_base: bool = False


@dataclass(frozen=True)
class Row:
    """A model's figures; what is not known is empty."""

    name: str
    #: "base", "run", "experts" or "published"
    kind: str
    cells: Sequence[Cell | None]
    average: str
    normalised: str
    #: the task and its figure
    worst: tuple[str, str] | None
    marks: Sequence[str] = ()


class Table:
    """Reports of runs by name, side by side."""

    def __init__(self, reports: Mapping[str, Report]) -> None:
        self.reports = reports
        #: every task and its main metric
        self.metrics: dict[str, Metric] = {}
        for report in reports.values():
            self.metrics |= {
                task: metric
                for task, metric in report.main_metrics.items()
                if task not in self.metrics
            }
        #: the tasks that every run was measured on
        self.shared = [
            task
            for task, metric in self.metrics.items()
            if all(each.main_metrics.get(task) == metric for each in reports.values())
        ]

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks."""
        return list(self.metrics)

    @property
    def unit(self) -> str:
        """What all figures are, where they are of one metric; else empty."""
        said = {str(metric) for metric in self.metrics.values()}
        return said.pop() if len(said) == 1 else ""

    @property
    def rows(self) -> list[Row]:
        """The base, the runs and the experts."""
        base = self._beside("base", {name: each.base for name, each in self.reports.items()})
        experts = self._beside(
            "experts", {name: each.experts for name, each in self.reports.items()}
        )
        runs = [
            self._row(name, "run", each.tasks, each, _marks(each))
            for name, each in self.reports.items()
        ]
        return [*base, *runs, *experts]

    @property
    def published(self) -> list[tuple[Published, list[Row]]]:
        """What others published for the same models, and its rows that are about these tasks."""
        known = [each.published for each in self.reports.values() if each.published is not None]
        found = {each.family: each for each in known}
        return [(each, rows) for each in found.values() if (rows := [*self._of(each)])]

    def of(self, report: Report, tasks: Figures | None = None) -> Report:
        """Return a report, or one of other figures beside it, on the tasks that all runs have."""
        figures = report.tasks if tasks is None else tasks
        return replace(report, tasks={name: figures[name] for name in self.shared})

    def _beside(self, kind: str, rows: Mapping[str, Figures]) -> Iterator[Row]:
        """Return a row that runs share once, or as often as it differs."""
        found: list[tuple[str, dict[str, Metrics]]] = []
        for name, row in rows.items():
            same = [known for _, known in found if _agree(known, row)]
            if same:
                same[0].update(row)
            elif row:
                found.append((name, dict(row)))
        for name, row in found:
            label = kind if len(found) == 1 else f"{kind} of {name}"
            yield self._row(label, kind, row, self.reports[name], self._recalled(kind, name))

    def _recalled(self, kind: str, name: str) -> list[str]:
        return ["remembered"] if kind in self.reports[name].remembered else []

    def _of(self, published: Published) -> Iterator[Row]:
        for name, row in published.rows.items():
            figures = {
                task: {metric.name: row[task]}
                for task, metric in self.metrics.items()
                if task in row and metric.unit == _FRACTION
            }
            if figures:
                bare = replace(next(iter(self.reports.values())), experts={})
                yield self._row(name, "published", figures, bare)

    def _row(
        self, name: str, kind: str, figures: Figures, report: Report, marks: Sequence[str] = ()
    ) -> Row:
        cells = [self._cell(task, kind, figures, report) for task in self.metrics]
        if not self.shared or any(task not in figures for task in self.shared):
            return Row(name, kind, cells, "", "", None, marks)
        shared = self.of(report, figures)
        share = shared.normalised_average
        return Row(
            name,
            kind,
            cells,
            "" if shared.average is None else self.metrics[self.shared[0]].shown(shared.average),
            "" if share is None else f"{100 * share:.1f}",
            worst_of(shared),
            marks,
        )

    def _cell(self, task: str, kind: str, figures: Figures, report: Report) -> Cell | None:
        if task not in figures:
            return None
        metric, (value, *_) = self.metrics[task], figures[task].values()
        notes = tuple(
            f"{name} {noted.shown(each)}"
            for name, each in figures[task].items()
            if (noted := report.metric(task, name)).is_noted and each and name != metric.name
        )
        base = report.base.get(task)
        is_run = kind == "run"
        below = is_run and base is not None and _better(metric, _main(base), value)
        return Cell(metric.shown(value), notes, is_run and self._is_best(task, value), below)

    def _is_best(self, task: str, value: float) -> bool:
        """Tell whether no run is better on a task, where there is a choice."""
        metric = self.metrics[task]
        values = [_main(each.tasks[task]) for each in self.reports.values() if task in each.tasks]
        is_rival = len(values) > 1 and math.isfinite(value)
        return is_rival and not any(_better(metric, each, value) for each in values)


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
    """Return how near figures come to the experts', by task: 1 for as good."""
    found = {
        task: metric.ratio(_main(figures[task]), _main(report.experts[task]))
        for task, metric in report.main_metrics.items()
        if task in figures and task in report.experts
    }
    return {
        task: ratio for task, ratio in found.items() if ratio is not None and math.isfinite(ratio)
    }


def _marks(report: Report) -> list[str]:
    """Return what is to be known of a run's figures."""
    said = {"transductive": report.transductive, "needs the task": report.needs_task}
    return [name for name, holds in said.items() if holds]


def _main(metrics: Metrics) -> float:
    return next(iter(metrics.values()))


def _better(metric: Metric, one: float, other: float) -> bool:
    return one > other if metric.higher_is_better else one < other


def _agree(one: Figures, other: Figures) -> bool:
    """Tell whether two rows say the same of the tasks that both have; NaN is like NaN."""
    both = one.keys() & other.keys()
    return bool(both) and all(repr(one[task]) == repr(other[task]) for task in both)
