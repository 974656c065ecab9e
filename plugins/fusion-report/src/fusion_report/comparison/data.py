"""Comparisons as JSON data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import build_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import Report
    from fusion_core.commands import Intervals
    from fusion_report.comparison.differences import Difference

_AVERAGES = ("average", "normalised_average")


def reports_as_json(
    reports: Mapping[str, Report], intervals: Intervals | None = None
) -> dict[str, dict[str, Any]]:
    """Return reports as JSON data with averages over their common tasks."""
    shared = list(build_table(reports).shared)
    data = {}
    for name, report in reports.items():
        content = report.as_json(intervals)
        averages = report.over(shared).as_json(intervals)
        content |= {key: averages[key] for key in _AVERAGES}
        if intervals is not None:
            content["intervals"] |= {key: averages["intervals"][key] for key in _AVERAGES}
        data[name] = {**content, "averaged_over": shared}
    return data


def differences_as_json(first: str, differences: Sequence[Difference]) -> dict[str, Any]:
    """Return the differences from the first model per task and on average."""
    tasks = {row.label: row.as_json() for row in differences if row.is_task}
    average = next((row.as_json() for row in differences if not row.is_task), None)
    return {"against": first, "tasks": tasks, "average": average}
