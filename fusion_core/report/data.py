"""Reports as JSON's data, for programs: alone, or compared with others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.intervals import interval_of, interval_of_average, interval_of_normalised
from fusion_core.contracts.layout import common

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.contracts.intervals import Interval
    from fusion_core.contracts.report import Report
    from fusion_core.report.paired import Difference


def report_as_json(report: Report, *, intervals: bool = False) -> dict[str, Any]:
    """Return the content of `report.json`, with 95 % intervals if they are wanted."""
    if not intervals:
        return report.as_json()
    rows = {"tasks": report.tasks, "base": report.base, "experts": report.experts}
    found = {name: {t: interval_of(each) for t, each in row.items()} for name, row in rows.items()}
    return {**report.as_json(), "intervals": {**found, **_of_averages(report)}}


def compared_as_json(
    reports: Mapping[str, Report], *, intervals: bool = False
) -> dict[str, dict[str, Any]]:
    """Return reports as JSON's data, their averages over the tasks that all have."""
    shared = common(reports)
    found = {name: report_as_json(each, intervals=intervals) for name, each in reports.items()}
    for name, report in reports.items():
        same = report.over(shared)
        averages = {key: same.as_json()[key] for key in ("average", "normalised_average")}
        found[name] |= {**averages, "averaged_over": shared}
        if intervals:
            found[name]["intervals"] |= _of_averages(same)
    return found


def differences_as_json(first: str, found: Sequence[Difference]) -> dict[str, Any]:
    """Return how a model differs from the first one: by task, and on average."""
    average = [each.as_json() for each in found if not each.is_task]
    tasks = {each.label: each.as_json() for each in found if each.is_task}
    return {"against": first, "tasks": tasks, "average": average[0] if average else None}


def _of_averages(report: Report) -> dict[str, Interval | None]:
    """Return the intervals of the averages; None where there is none, or no average."""
    metrics, tasks = report.main_metrics, report.tasks
    average = interval_of_average(list(tasks.values())) if report.average is not None else None
    share = None
    if report.normalised_average is not None:
        row = [(metrics[task], tasks[task], report.experts[task]) for task in tasks]
        share = interval_of_normalised(row)
    return {"average": average, "normalised_average": share}
