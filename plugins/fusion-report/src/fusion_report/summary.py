"""What a page says first, in one sentence, and in a few large numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion_report.table import Table, below_base, worst_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from fusion_core import Metric, Report
    from fusion_report.runs import Run


def sentence(runs: Sequence[Run], table: Table | None) -> str:
    """Say what came out."""
    if table is None:
        said = ", ".join(_made(run) for run in runs)
        return f"{said}; nothing of it has been measured."
    ranked = _ranked(table)
    if len(runs) == 1 or not ranked:
        return _of_one(runs[0], table) if len(runs) == 1 else f"{len(runs)} runs, side by side."
    return _of_several(ranked, table)


def tiles(run: Run, table: Table | None) -> Iterator[tuple[str, str, str]]:
    """Yield what a run's largest numbers are, the numbers, and what is said below them."""
    if table is not None:
        (report,) = table.reports.values()
        average, share, worst = report.average, report.normalised_average, worst_of(report)
        if average is not None:
            metric = next(iter(report.main_metrics.values()))
            yield "average", metric.shown(average), f"{metric}, {_count(report.tasks, 'task')}"
        if share is not None:
            yield "of the experts", f"{100 * share:.1f} %", "normalised average"
        if worst is not None:
            yield "worst task", worst[1], worst[0]
    if (seconds := run.provenance.timings.seconds) is not None:
        yield "merged in", duration(seconds), run.provenance.device


def duration(seconds: float) -> str:
    """Show a time."""
    if seconds < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _of_one(run: Run, table: Table) -> str:
    (report,) = table.reports.values()
    average = report.average
    if average is None:
        count = _count(report.tasks, "task")
        said = f"{_made(run)}, measured on {count} by different metrics"
        return f"{said}{_falls(report)}{_suspicion(report)}."
    metric = next(iter(report.main_metrics.values()))
    unit = _unit(metric)
    said = f"{_made(run)}: {metric.name} {metric.shown(average)}{unit} on average over "
    said += _count(report.tasks, "task")
    share, worst = report.normalised_average, worst_of(report)
    if share is not None:
        said += f", {100 * share:.1f} % of what each task's expert reaches"
    if worst is not None and len(report.tasks) > 1:
        said += f"; worst on {worst[0]} with {worst[1]}{unit}"
    return f"{said}{_falls(report)}{_suspicion(report)}."


def _unit(metric: Metric) -> str:
    """Return what stands behind a figure."""
    return " %" if metric.unit == "fraction" else f" {metric.unit}".rstrip()


def _falls(report: Report) -> str:
    below = below_base(report)
    return f", and behind the base on {_listed(below)}" if below else ""


def _suspicion(report: Report) -> str:
    """Say that an expert scores below the base: the page's warning has the tasks."""
    suspicious = report.experts_below_base
    return "; experts and tasks probably do not belong together" if suspicious else ""


def _of_several(ranked: Sequence[tuple[str, Report]], table: Table) -> str:
    (name, best), *others = ranked
    metric = next(iter(best.main_metrics.values()))
    unit = _unit(metric)
    average = best.average
    assert average is not None  # noqa: S101 - it is ranked by it
    share = best.normalised_average
    of_experts = "" if share is None else f", {100 * share:.1f} % of the experts'"
    said = (
        f"Of {len(table.reports)} measured runs, {name} is best: {metric.name} "
        f"{metric.shown(average)}{unit} on average over {_count(table.shared, 'task')}{of_experts}"
    )
    fair = next((each for each in others if not each[1].needs_task), None)
    if best.needs_task and fair is not None:
        (other, report) = fair
        said += (
            f"; it needs to know the task, and the best that does not is {other} with "
            f"{metric.shown(report.average or 0)}{unit}"
        )
    return f"{said}{_suspicion(best)}."


def _ranked(table: Table) -> list[tuple[str, Report]]:
    """Return the reports on the tasks that all have, the best first; none without an average."""
    if not table.shared:
        return []
    reports = {name: table.of(each) for name, each in table.reports.items()}
    averages = {name: each.average for name, each in reports.items()}
    known = {name: mean for name, mean in averages.items() if mean is not None}
    higher = table.metrics[table.shared[0]].higher_is_better
    order = sorted(filter(lambda name: math.isfinite(known[name]), known), key=known.__getitem__)
    return [(name, reports[name]) for name in (reversed(order) if higher else order)]


def _made(run: Run) -> str:
    method = run.method or run.name
    return f"{method} of {_count(run.experts, 'expert')}" if run.experts else method


def _count(things: Sized, noun: str) -> str:
    count = len(things)
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
