"""The summary of a page: one sentence and a few large numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion_report.table import PageTable, tasks_below_base, worst_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from fusion_core import Metric, Report
    from fusion_report.runs import Run


def summarise(runs: Sequence[Run], table: PageTable | None) -> str:
    """Return the results of runs in one sentence."""
    if table is None:
        return f"{', '.join(_describe(run) for run in runs)}; not measured."
    ranked = _ranked(table)
    if len(runs) == 1:
        return _summarise_run(runs[0], table)
    if not ranked:
        differ = "" if table.is_comparable else ", measured on different examples"
        return f"{len(runs)} runs side by side{differ}."
    return _summarise_best(ranked, table)


def tiles(run: Run, table: PageTable | None) -> Iterator[tuple[str, str, str]]:
    """Yield the name, value and explanation of a run's main numbers."""
    if table is not None:
        (report,) = table.reports.values()
        average, share, worst = report.average, report.normalised_average, worst_task(report)
        if average is not None:
            metric = next(iter(report.main_metrics.values()))
            yield "average", metric.shown(average), f"{metric}, {_count(report.tasks, 'task')}"
        if share is not None:
            yield "of the experts", f"{100 * share:.1f} %", "normalised average"
        if worst is not None:
            yield "worst task", worst[1], worst[0]
    if (seconds := run.provenance.run.seconds) is not None:
        yield "merged in", format_duration(seconds), run.provenance.device


def format_duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 60:  # noqa: PLR2004 - one minute
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _summarise_run(run: Run, table: PageTable) -> str:
    (report,) = table.reports.values()
    average, count = report.average, _count(report.tasks, "task")
    if average is None:
        text = f"{_describe(run)}, measured on {count} by different metrics"
    else:
        metric = next(iter(report.main_metrics.values()))
        unit = _unit(metric)
        text = (
            f"{_describe(run)}: {metric.name} {metric.shown(average)}{unit} on average over {count}"
        )
        share, worst = report.normalised_average, worst_task(report)
        if share is not None:
            text += f", {100 * share:.1f} % of the experts'"
        if worst is not None and len(report.tasks) > 1:
            text += f"; worst on {worst[0]} with {worst[1]}{unit}"
    if below := tasks_below_base(report):
        *others, last = below
        names = f"{', '.join(others)} and {last}" if others else last
        text += f"; below the base on {names}"
    return f"{text}{_suspicion(report)}."


def _unit(metric: Metric) -> str:
    """Return the unit to write after a number, with a space."""
    return " %" if metric.unit == "fraction" else f" {metric.unit}".rstrip()


def _suspicion(report: Report) -> str:
    """Mention experts below the base; the warning on the page names the tasks."""
    if not report.experts_below_base:
        return ""
    return "; experts and tasks probably do not belong together"


def _summarise_best(ranked: Sequence[tuple[str, Report]], table: PageTable) -> str:
    (name, best), *others = ranked
    metric = next(iter(best.main_metrics.values()))
    unit = _unit(metric)
    average = best.average
    assert average is not None  # noqa: S101 - reports are ranked by it
    share = best.normalised_average
    of_experts = "" if share is None else f", {100 * share:.1f} % of the experts'"
    text = (
        f"Of {len(table.reports)} measured runs, {name} is best: {metric.name} "
        f"{metric.shown(average)}{unit} on average over {_count(table.shared, 'task')}{of_experts}"
    )
    without_task = next(((n, report) for n, report in others if not report.needs_task), None)
    if best.needs_task and without_task is not None:
        other, report = without_task
        text += (
            f"; it needs to know the task, and the best that does not is {other} with "
            f"{metric.shown(report.average or 0)}{unit}"
        )
    return f"{text}{_suspicion(best)}."


def _ranked(table: PageTable) -> list[tuple[str, Report]]:
    """Return the reports on the common tasks, best first; leave out those without an average."""
    if not table.shared or not table.is_comparable:
        return []
    reports = {name: table.over_shared(report) for name, report in table.reports.items()}
    averages = {name: report.average for name, report in reports.items()}
    known = {n: mean for n, mean in averages.items() if mean is not None and math.isfinite(mean)}
    higher_is_better = table.metrics[table.shared[0]].higher_is_better
    order = sorted(known, key=known.__getitem__, reverse=higher_is_better)
    return [(name, reports[name]) for name in order]


def _describe(run: Run) -> str:
    method = run.method or run.name
    return f"{method} of {_count(run.experts, 'expert')}" if run.experts else method


def _count(things: Sized, noun: str) -> str:
    count = len(things)
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
