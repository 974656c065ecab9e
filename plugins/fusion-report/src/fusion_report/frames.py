"""Reports as pandas data frames; pandas is optional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import Intervals, build_table, import_optional

if TYPE_CHECKING:
    from fusion_core import Report


def to_dataframe(report: Report) -> Any:  # noqa: ANN401 - pandas' DataFrame
    """Return a data frame of the main metrics with one row per task; fractions are 0 to 1.

    Columns are `metric`, `merged` and, if measured, `base` and `experts`. If tasks store outcomes,
    `low` and `high` are the ends of the merge's 95 % intervals. Raises `FusionError` if pandas is
    missing.
    """
    pandas = import_optional("pandas", "to_dataframe", "fusion-report[pandas]")
    table = build_table({"merged": report}, Intervals())
    entries = [entry for entry in table.entries if entry.is_task]
    columns: dict[str, list[str | float | None]] = {
        "task": [entry.label for entry in entries],
        "metric": [entry.metric.name for entry in entries],
    }
    for number, heading in enumerate(table.headings):
        figures = [entry.figures[number] for entry in entries]
        columns[heading] = [None if figure is None else figure.value for figure in figures]
    merged = [entry.figures[table.first] for entry in entries]
    intervals = [None if figure is None else figure.interval for figure in merged]
    if any(interval is not None for interval in intervals):
        for end, name in enumerate(("low", "high")):
            columns[name] = [None if interval is None else interval[end] for interval in intervals]
    return pandas.DataFrame(columns).set_index("task")
