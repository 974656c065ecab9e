"""A report as a table on stdout: a row a task, a column a model, in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_core.task_pool import main, mean_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.task_pool import Metrics, Published, Report


def print_report(report: Report, name: str) -> None:
    """Print a report to stdout; `name` heads the measured model's column."""
    console = Console(highlight=False)
    console.print(report_table(report, name))
    for note in notes(report):
        console.print(note, markup=False)
    if report.published is not None and (tasks := compared(report)):
        console.print()
        console.print(published_table(report, report.published, tasks, name))
        console.print(f"published: {report.published.source}", markup=False, soft_wrap=True)
        console.print(f"of {report.published.family}", markup=False, soft_wrap=True)


def report_table(report: Report, name: str) -> Table:
    """Lay a report out: pretrained, this model, individual experts, and the share of the latter."""
    columns: dict[str, Mapping[str, Metrics]] = {
        "pretrained": report.pretrained,
        name: report.tasks,
        "individual": report.individual,
    }
    shown = {heading: rows for heading, rows in columns.items() if rows}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task")
    for heading in shown:
        table.add_column(Text(heading), justify="right")
    for task in report.tasks:
        table.add_row(Text(task), *(_cell(rows.get(task)) for rows in shown.values()))
    averages = (_percent(mean_of(rows)) for rows in shown.values())
    table.add_row("average", *averages, style="bold")
    return table


def compared(report: Report) -> list[str]:
    """Return the tasks that were measured here and by whoever published figures."""
    rows = [] if report.published is None else report.published.rows.values()
    return [task for task in report.tasks if any(task in row for row in rows)]


def published_table(report: Report, published: Published, tasks: list[str], name: str) -> Table:
    """Lay out this run among published methods: a row a method, a column a task, by average."""
    ours = {task: main(metrics) for task, metrics in report.tasks.items()}
    rows = [(name, ours), *published.rows.items()]
    complete = [(label, row) for label, row in rows if all(task in row for task in tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in (*tasks, "average"):
        table.add_column(Text(heading, overflow="fold"), justify="right", overflow="fold")
    for label, row in sorted(complete, key=lambda each: _mean(each[1], tasks)):
        cells = (_percent(row[task]) for task in tasks)
        table.add_row(
            Text(f"{label} (this run)" if row is ours else label),
            *cells,
            _percent(_mean(row, tasks)),
            style="bold" if row is ours else None,
        )
    return table


def notes(report: Report) -> list[str]:
    """Say what the numbers do not: the normalised average, and what was adapted on."""
    found = ["accuracy in %"]
    if report.normalised_average is not None:
        found[0] += f"; on average {_percent(report.normalised_average)} of the individual experts'"
    if report.transductive:
        found.append("transductive: the algorithm saw the test examples, without their labels")
    if report.measured_on is not None:
        found.append(f"measured on {report.measured_on}")
    return found


def _mean(row: Mapping[str, float], tasks: list[str]) -> float:
    return sum(row[task] for task in tasks) / len(tasks)


def _cell(metrics: Metrics | None) -> str:
    return "" if metrics is None else _percent(main(metrics))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
