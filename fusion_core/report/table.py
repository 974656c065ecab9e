"""Reports as a table on stdout: one row per task, one column per model; fractions in percent.

Several reports stand side by side. More models than fit have a row each.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fusion_core.contracts.layout import (
    NORMALISED,
    are_alike,
    common,
    lines_of,
    shared_lines,
    table_of,
)
from fusion_core.contracts.measures import FRACTION, main
from fusion_core.report.below_base import below_base_notes
from fusion_core.report.drawing import report_tables, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.intervals import Intervals
    from fusion_core.contracts.report import Published, Report
    from fusion_core.contracts.table import Table as Figures

    Reports = Mapping[str, Report]

_PIPE = 240  # columns: programs and files need no folding


def print_reports(reports: Reports, *, intervals: Intervals | None = None) -> None:
    """Print reports to stdout, each under the name of the model that was measured.

    With `intervals`, figures have them.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE)
    figures = table_of(reports, intervals)
    for table in report_tables(figures, console.width):
        console.print(table)
    for note in [*notes(reports), *_of_intervals(figures)]:
        console.print(text_of(note), soft_wrap=True)
    known = [report.published for report in reports.values() if report.published is not None]
    for published in {figures.family: figures for figures in known}.values():
        _print_published(console, of_family(reports, published), published)


def _print_published(console: Console, reports: Reports, published: Published) -> None:
    tasks = compared(reports, published)
    if tasks:
        console.print()
        console.print(published_table(reports, published, tasks))
        console.print(text_of(f"published: {published.source}"), soft_wrap=True)
        console.print(text_of(f"of {published.family}"), soft_wrap=True)


def of_family(reports: Reports, published: Published) -> Reports:
    """Return the reports that figures may stand beside: none of another family's checkpoints."""
    return {
        name: report
        for name, report in reports.items()
        if report.published is None or report.published.family == published.family
    }


def compared(reports: Reports, published: Published) -> list[str]:
    """Return the tasks that both the reports and the published figures have."""
    rows = published.rows.values()
    return [
        task
        for task, metric in shared_lines(reports)
        if metric.unit == FRACTION and any(task in row for row in rows)
    ]


def published_table(reports: Reports, published: Published, tasks: list[str]) -> Table:
    """Lay these models out among published methods, ordered by average.

    The table has one row per method and one column per task.
    """
    own = {
        f"{name} (this run)": {task: main(report.tasks[task]) for task in tasks}
        for name, report in reports.items()
    }
    rows = [*own.items(), *published.rows.items()]
    complete = [(label, row) for label, row in rows if all(task in row for task in tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in (*tasks, "average"):
        table.add_column(text_of(heading), justify="right", overflow="fold")
    for label, row in sorted(complete, key=lambda labelled: _mean(labelled[1], tasks)):
        cells = (_percent(row[task]) for task in tasks)
        style = "bold" if own.get(label) is row else None
        table.add_row(text_of(label), *cells, _percent(_mean(row, tasks)), style=style)
    return table


def notes(reports: Reports) -> list[str]:
    """Return what the numbers do not say: units, what was adapted and measured on, and the like."""
    lines, shared = lines_of(reports), shared_lines(reports)
    said = [scale] if (scale := _scale(reports)) else []
    said += below_base_notes(reports)
    if not are_alike(shared):
        said.append("no average: the tasks are measured in different units")
    if len(shared) < len(lines):
        tasks = ", ".join(task for task, _ in shared) or "none"
        said.append(f"averages are over the tasks that all have: {tasks}")
    if names := [name for name, report in reports.items() if report.transductive]:
        seen = "the algorithm saw the test examples, without their labels"
        said.append(f"transductive{_of(names, reports)}: {seen}")
    if names := [name for name, report in reports.items() if report.needs_task]:
        own = "each task was measured with weights or an adapter of its own"
        said.append(f"needs the task at inference{_of(names, reports)}: {own}")
    for chosen in dict.fromkeys(report.chosen for report in reports.values()):
        if chosen is not None:
            names = [name for name, report in reports.items() if report.chosen == chosen]
            said.append(f"options chosen {chosen}{_of(names, reports)}")
    for measured_on in dict.fromkeys(report.measured_on for report in reports.values()):
        if measured_on is not None:
            names = [name for name, report in reports.items() if report.measured_on == measured_on]
            said.append(f"measured on {measured_on}{_of(names, reports)}")
    if len(reports) == 1:
        said += _remembered(*reports.values())
    return said


def _remembered(report: Report) -> list[str]:
    """Name the rows that an earlier run measured."""
    rows = " and ".join(report.remembered)
    return [f"{rows}: as an earlier run measured them; --fresh measures anew"] if rows else []


def _scale(reports: Reports) -> str:
    """Return the metric of all values, where they have one, and what is normalised."""
    metrics = {metric for _, metric in lines_of(reports)}
    parts = [str(metric) for metric in metrics] if len(metrics) == 1 else []
    shared = common(reports)
    if any(r.over(shared).normalised_average is not None for r in reports.values()):
        parts.append(f"{NORMALISED}: in % of the experts', on average")
    return "; ".join(parts)


def _of_intervals(figures: Figures) -> list[str]:
    """Say what the intervals are over, or why there are none."""
    if figures.intervals is None:
        return []
    known = [figure for entry in figures.entries for figure in entry.figures if figure is not None]
    if all(figure.interval is None for figure in known):
        return [f"no intervals: {figures.intervals.missing}"]
    return [f"±: 95 % intervals over {figures.intervals.over}; -1.9+1.2: so far down, so far up"]


def _of(names: list[str], reports: Reports) -> str:
    """Name the models that a note is about; a single report needs no name."""
    return "" if len(reports) == 1 else f" ({', '.join(names)})"


def _mean(row: Mapping[str, float], tasks: list[str]) -> float:
    return sum(row[task] for task in tasks) / len(tasks)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
