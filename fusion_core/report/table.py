"""Reports as tables on stdout: a row a task, a column a model, in percent.

Several reports stand side by side; one alone is the same table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_core.contracts.report import main, mean_of
from fusion_core.report.stored import common
from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fusion_core.contracts.report import Metrics, Published, Report

    Rows = Mapping[str, Metrics]
    Reports = Mapping[str, Report]

_PIPE = 240  # columns: programs and files need no folding


def print_reports(reports: Reports) -> None:
    """Print reports to stdout, each under the name of the model that was measured."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE)
    console.print(report_table(reports))
    for note in notes(reports):
        console.print(_text(note), soft_wrap=True)
    known = [each.published for each in reports.values() if each.published is not None]
    for published in {each.family: each for each in known}.values():
        _print_published(console, of_family(reports, published), published)


def _print_published(console: Console, reports: Reports, published: Published) -> None:
    tasks = compared(reports, published)
    if tasks:
        console.print()
        console.print(published_table(reports, published, tasks))
        console.print(_text(f"published: {published.source}"), soft_wrap=True)
        console.print(_text(f"of {published.family}"), soft_wrap=True)


def report_table(reports: Reports) -> Table:
    """Lay reports out: pretrained, the models, individual experts; averages over common tasks."""
    columns = dict(_columns(reports))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task")
    for heading in columns:
        table.add_column(_text(heading), justify="right", overflow="fold")
    for task in dict.fromkeys(task for each in reports.values() for task in each.tasks):
        table.add_row(_text(task), *(_cell(rows.get(task)) for rows in columns.values()))
    shared = common(reports)
    averages = (_average(rows, shared) for rows in columns.values())
    table.add_row("average", *averages, style="bold")
    return table


def of_family(reports: Reports, published: Published) -> Reports:
    """Return the reports that figures may stand beside: none of another family's checkpoints."""
    return {
        name: each
        for name, each in reports.items()
        if each.published is None or each.published.family == published.family
    }


def compared(reports: Reports, published: Published) -> list[str]:
    """Return the tasks that were measured here and by whoever published figures."""
    rows = published.rows.values()
    return [task for task in common(reports) if any(task in row for row in rows)]


def published_table(reports: Reports, published: Published, tasks: list[str]) -> Table:
    """Lay these models out among published methods: a row a method, a column a task, by average."""
    ours = {
        f"{name} (this run)": {task: main(report.tasks[task]) for task in tasks}
        for name, report in reports.items()
    }
    rows = [*ours.items(), *published.rows.items()]
    complete = [(label, row) for label, row in rows if all(task in row for task in tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in (*tasks, "average"):
        table.add_column(_text(heading), justify="right", overflow="fold")
    for label, row in sorted(complete, key=lambda each: _mean(each[1], tasks)):
        cells = (_percent(row[task]) for task in tasks)
        style = "bold" if ours.get(label) is row else None
        table.add_row(_text(label), *cells, _percent(_mean(row, tasks)), style=style)
    return table


def notes(reports: Reports) -> list[str]:
    """Say what the numbers do not: normalised averages, what was adapted and measured on."""
    found = [_scale(reports)]
    tasks = {task for each in reports.values() for task in each.tasks}
    if len(shared := common(reports)) < len(tasks):
        found.append(f"averages are over the tasks that all have: {', '.join(shared) or 'none'}")
    transductive = [name for name, each in reports.items() if each.transductive]
    if transductive:
        said = "the algorithm saw the test examples, without their labels"
        found.append(f"transductive{_of(transductive, reports)}: {said}")
    for measured_on in dict.fromkeys(each.measured_on for each in reports.values()):
        if measured_on is not None:
            names = [name for name, each in reports.items() if each.measured_on == measured_on]
            found.append(f"measured on {measured_on}{_of(names, reports)}")
    return found


def _scale(reports: Reports) -> str:
    shared = common(reports)
    shares = {name: each.over(shared).normalised_average for name, each in reports.items()}
    shown = [
        _percent(share) + ("" if len(reports) == 1 else f" ({name})")
        for name, share in shares.items()
        if share is not None
    ]
    if not shown:
        return "accuracy in %"
    return f"accuracy in %; on average {', '.join(shown)} of the individual experts'"


def _of(names: list[str], reports: Reports) -> str:
    """Say which of several models something is said of."""
    return "" if len(reports) == 1 else f" ({', '.join(names)})"


def _columns(reports: Reports) -> Iterator[tuple[str, Rows]]:
    """Name the columns; those that models share stand once, or as often as they differ."""
    yield from _shared("pretrained", {name: each.pretrained for name, each in reports.items()})
    yield from ((name, each.tasks) for name, each in reports.items())
    yield from _shared("individual", {name: each.individual for name, each in reports.items()})


def _shared(heading: str, rows: Mapping[str, Rows]) -> Iterator[tuple[str, Rows]]:
    known = {name: each for name, each in rows.items() if each}
    if _agree(known.values()):
        merged = {task: metrics for each in known.values() for task, metrics in each.items()}
        yield from [(heading, merged)] if merged else []
        return
    yield from ((f"{heading} of {name}", each) for name, each in known.items())


def _agree(rows: Iterable[Rows]) -> bool:
    """Tell whether no task has two main metrics."""
    seen: dict[str, float] = {}
    return all(
        seen.setdefault(task, main(metrics)) == main(metrics)
        for each in rows
        for task, metrics in each.items()
    )


def _average(rows: Rows, tasks: list[str]) -> str:
    """Average a column; of fewer tasks than the others it would compare with none of them."""
    if not tasks or not all(task in rows for task in tasks):
        return ""
    return _percent(mean_of({task: rows[task] for task in tasks}))


def _mean(row: Mapping[str, float], tasks: list[str]) -> float:
    return sum(row[task] for task in tasks) / len(tasks)


def _cell(metrics: Metrics | None) -> str:
    return "" if metrics is None else _percent(main(metrics))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _text(value: str) -> Text:
    return Text(printable(" ".join(value.splitlines())))
