"""Reports as tables on stdout: a row a task, a column a model; fractions in percent.

Several reports stand side by side; one alone is the same table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_core.contracts.measures import FRACTION, Metric, Metrics, main
from fusion_core.report.stored import common
from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fusion_core.contracts.report import Published, Report

    Reports = Mapping[str, Report]
    #: A row of the table: a task, and the metric that its values are of.
    Line = tuple[str, Metric]
    Figures = Mapping[Line, float]

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
    """Lay reports out: the base, the models, the experts; averages over common tasks.

    A column says what is measured where that differs between tasks.
    """
    columns = dict(_columns(reports))
    lines = [*_lines(reports), *_noted_lines(reports)]
    mixed = len({metric for _, metric in lines}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "metric") if mixed else ("task",):
        table.add_column(heading)
    for heading in columns:
        table.add_column(_text(heading), justify="right", overflow="fold")
    for line in lines:
        named = [_text(line[0]), *([_text(str(line[1]))] if mixed else [])]
        table.add_row(*named, *(_cell(line, each) for each in columns.values()))
    shared = _shared_lines(reports)
    if _alike(shared):
        averages = (_average(figures, shared) for figures in columns.values())
        table.add_row("average", *([""] if mixed else []), *averages, style="bold")
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
    return [
        task
        for task, metric in _shared_lines(reports)
        if metric.unit == FRACTION and any(task in row for row in rows)
    ]


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
    """Say what the numbers do not: units, normalised averages, what was adapted and measured on."""
    found = list(filter(None, [_scale(reports)]))
    lines, shared = _lines(reports), _shared_lines(reports)
    if not _alike(shared):
        found.append("no average: the tasks are measured in different units")
    if len(shared) < len(lines):
        said = ", ".join(task for task, _ in shared) or "none"
        found.append(f"averages are over the tasks that all have: {said}")
    transductive = [name for name, each in reports.items() if each.transductive]
    if transductive:
        said = "the algorithm saw the test examples, without their labels"
        found.append(f"transductive{_of(transductive, reports)}: {said}")
    knowing = [name for name, each in reports.items() if each.needs_task]
    if knowing:
        said = "each task was measured with weights or an adapter of its own"
        found.append(f"needs the task at inference{_of(knowing, reports)}: {said}")
    for chosen in dict.fromkeys(each.chosen for each in reports.values()):
        if chosen is not None:
            names = [name for name, each in reports.items() if each.chosen == chosen]
            found.append(f"options chosen {chosen}{_of(names, reports)}")
    for measured_on in dict.fromkeys(each.measured_on for each in reports.values()):
        if measured_on is not None:
            names = [name for name, each in reports.items() if each.measured_on == measured_on]
            found.append(f"measured on {measured_on}{_of(names, reports)}")
    if len(reports) == 1:
        found += _remembered(*reports.values())
    return found


def _remembered(report: Report) -> list[str]:
    """Say which rows are not of this run."""
    rows = " and ".join(report.remembered)
    return [f"{rows}: as an earlier run measured them; --fresh measures anew"] if rows else []


def _scale(reports: Reports) -> str:
    """Say what all values are, where they are of one metric, and how near they come to experts'."""
    metrics = {metric for _, metric in _lines(reports)}
    said = [str(each) for each in metrics] if len(metrics) == 1 else []
    shared = common(reports)
    shares = {name: each.over(shared).normalised_average for name, each in reports.items()}
    shown = [
        _percent(share) + (" %" if len(reports) == 1 else f" % ({name})")
        for name, share in shares.items()
        if share is not None
    ]
    if shown:
        said.append(f"on average {', '.join(shown)} of the experts'")
    return "; ".join(said)


def _of(names: list[str], reports: Reports) -> str:
    """Say which of several models something is said of."""
    return "" if len(reports) == 1 else f" ({', '.join(names)})"


def _columns(reports: Reports) -> Iterator[tuple[str, Figures]]:
    """Name the columns; those that models share stand once, or as often as they differ."""
    yield from _shared("base", {name: _figures(r, r.base) for name, r in reports.items()})
    yield from ((name, _figures(report, report.tasks)) for name, report in reports.items())
    yield from _shared("experts", {name: _figures(r, r.experts) for name, r in reports.items()})


def _figures(report: Report, row: Mapping[str, Metrics]) -> Figures:
    """Return the main and noted metrics of a model, of the base or of the experts."""
    return {
        (task, metric): value
        for task, metrics in row.items()
        for number, (name, value) in enumerate(metrics.items())
        for metric in [report.metric(task, name)]
        if number == 0 or metric.is_noted
    }


def _lines(reports: Reports) -> list[Line]:
    """Return the rows of the table."""
    return list(dict.fromkeys(line for r in reports.values() for line in r.main_metrics.items()))


def _noted_lines(reports: Reports) -> list[Line]:
    """Return the rows below: what is not the main metric, and to be seen where it is not zero."""
    columns = [figures for _, figures in _columns(reports)]
    noted = dict.fromkeys(line for each in columns for line in each if line[1].is_noted)
    return [line for line in noted if any(each.get(line) for each in columns)]


def _shared_lines(reports: Reports) -> list[Line]:
    """Return the rows that every report has."""
    names = common(reports)
    return [line for line in _lines(reports) if line[0] in names]


def _alike(lines: list[Line]) -> bool:
    """Tell whether averages of these rows mean something."""
    return all(metric.agrees(lines[0][1]) for _, metric in lines)


def _shared(heading: str, columns: Mapping[str, Figures]) -> Iterator[tuple[str, Figures]]:
    known = {name: each for name, each in columns.items() if each}
    if _agree(known.values()):
        merged = {line: value for each in known.values() for line, value in each.items()}
        yield from [(heading, merged)] if merged else []
        return
    yield from ((f"{heading} of {name}", each) for name, each in known.items())


def _agree(columns: Iterable[Figures]) -> bool:
    """Tell whether no row has two values."""
    seen: dict[Line, float] = {}
    return all(
        seen.setdefault(line, value) == value for each in columns for line, value in each.items()
    )


def _average(figures: Figures, lines: list[Line]) -> str:
    """Average a column; of fewer tasks than the others it would compare with none of them."""
    if not lines or not all(line in figures for line in lines):
        return ""
    return lines[0][1].shown(sum(figures[line] for line in lines) / len(lines))


def _mean(row: Mapping[str, float], tasks: list[str]) -> float:
    return sum(row[task] for task in tasks) / len(tasks)


def _cell(line: Line, figures: Figures) -> str:
    return line[1].shown(figures[line]) if line in figures else ""


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _text(value: str) -> Text:
    return Text(printable(" ".join(value.splitlines())))
