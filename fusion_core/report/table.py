"""The table of reports on stdout: one row per task, one column per model, fractions in percent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fusion_core.contracts.measurements import FRACTION, main_value
from fusion_core.contracts.table_layout import (
    NORMALISED,
    are_comparable,
    build_table,
    lines_of,
    shared_lines,
    shared_tasks,
)
from fusion_core.report.below_base import below_base_notes
from fusion_core.report.rich_tables import report_tables, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.contracts.intervals import Intervals
    from fusion_core.contracts.report import Published, Report

    Reports = Mapping[str, Report]

#: The width in characters for pipes and files.
_PIPE_WIDTH = 240


def print_reports(reports: Reports, *, intervals: Intervals | None = None) -> None:
    """Print reports to stdout as one table, by the names of the measured models.

    `intervals` adds intervals to the figures. Published scores of the same models follow in a
    table of their own per family of checkpoints.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    report_table = build_table(reports, intervals)
    for table in report_tables(report_table, console.width):
        console.print(table)
    for note in filter(None, [*report_notes(reports), report_table.interval_note]):
        console.print(text_of(note), soft_wrap=True)
    published = [report.published for report in reports.values() if report.published is not None]
    for family in {scores.family: scores for scores in published}.values():
        _print_published(console, reports, family)


def _print_published(console: Console, reports: Reports, published: Published) -> None:
    """Print reports among published scores; leave out reports on other families of checkpoints."""
    comparable = {
        name: report
        for name, report in reports.items()
        if report.published is None or report.published.family == published.family
    }
    rows = published.rows.values()
    tasks = [
        task
        for task, metric in shared_lines(comparable)
        if metric.unit == FRACTION and any(task in row for row in rows)
    ]
    if tasks:
        console.print()
        console.print(_published_table(comparable, published, tasks))
        console.print(text_of(f"published: {published.source}"), soft_wrap=True)
        console.print(text_of(f"of {published.family}"), soft_wrap=True)


def _published_table(reports: Reports, published: Published, tasks: list[str]) -> Table:
    """Draw one row per model or published method, by average, and one column per task."""
    own_rows = {
        f"{name} (this run)": {task: main_value(report.tasks[task]) for task in tasks}
        for name, report in reports.items()
    }
    rows = [*own_rows.items(), *published.rows.items()]
    complete = [(label, row) for label, row in rows if all(task in row for task in tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in (*tasks, "average"):
        table.add_column(text_of(heading), justify="right", overflow="fold")

    def average(row: Mapping[str, float]) -> float:
        return sum(row[task] for task in tasks) / len(tasks)

    for label, row in sorted(complete, key=lambda labelled: average(labelled[1])):
        cells = (f"{100 * value:.1f}" for value in (*(row[task] for task in tasks), average(row)))
        style = "bold" if own_rows.get(label) is row else None
        table.add_row(text_of(label), *cells, style=style)
    return table


def report_notes(reports: Reports) -> list[str]:
    """Return notes to print below the table: units, and how models were adapted and measured."""
    lines, shared = lines_of(reports), shared_lines(reports)
    result = [scale] if (scale := _describe_scale(reports)) else []
    result += below_base_notes(reports)
    if not are_comparable(shared):
        result.append("no average: the tasks are measured in different units")
    if len(shared) < len(lines):
        tasks = ", ".join(task for task, _ in shared) or "none"
        result.append(f"averages are over the tasks that all have: {tasks}")
    result += _measuring_notes(reports)
    if len(reports) == 1:
        ((name, report),) = reports.items()
        if report.remembered:
            result.append(_describe_remembered(name, report))
    return result


def _describe_remembered(name: str, report: Report) -> str:
    """Return the note on scores that an earlier command measured."""
    rows = []
    for row, tasks in report.remembered.items():
        measured = report.tasks if row == "merged" else getattr(report.reference, row)
        label = name if row == "merged" else row
        rows.append(label if len(tasks) == len(measured) else f"{label} ({', '.join(tasks)})")
    return f"known from an earlier command: {', '.join(rows)}; --fresh measures again"


def _measuring_notes(reports: Reports) -> Iterator[str]:
    """Yield notes on adapting and measuring; name the models that a note is about, if several."""

    def name_models(names: list[str]) -> str:
        return "" if len(reports) == 1 else f" ({', '.join(names)})"

    if names := [name for name, report in reports.items() if report.transductive]:
        reason = "the algorithm saw the test examples, without their labels"
        yield f"transductive{name_models(names)}: {reason}"
    if names := [name for name, report in reports.items() if report.needs_task]:
        reason = "each task was measured with weights or an adapter of its own"
        yield f"needs the task at inference{name_models(names)}: {reason}"
    for attribute, prefix in (("chosen", "options chosen"), ("measured_on", "measured on")):
        models: dict[str, list[str]] = {}
        for name, report in reports.items():
            if (words := getattr(report, attribute)) is not None:
                models.setdefault(words, []).append(name)
        yield from (f"{prefix} {words}{name_models(names)}" for words, names in models.items())


def _describe_scale(reports: Reports) -> str:
    """Return the metric, if all tasks share one, and the meaning of `normalised`, if it appears."""
    metrics = {metric for _, metric in lines_of(reports)}
    parts = [str(metric) for metric in metrics] if len(metrics) == 1 else []
    tasks = shared_tasks(reports)
    if any(report.over(tasks).normalised_average is not None for report in reports.values()):
        parts.append(f"{NORMALISED}: in % of the experts', on average")
    return "; ".join(parts)
