"""Plots of scores and logged values for notebooks."""

from __future__ import annotations

import json
import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from fusion_core import Report
from fusion_core.commands import Intervals, build_table, escape_control
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusion_core import RunResult
    from fusion_core.commands import Entry, ReportTable
    from fusion_core.commands import Figure as Number

    #: step -> value
    Curve = dict[int, float]

_WIDTH, _ROW, _FRAME, _CURVE = 6.4, 0.3, 0.9, 2.0  # inches
#: Styles of the base, the merge and the experts.
_BASE = {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": "0.45"}
_MERGED = {"marker": "o", "color": "C0", "capsize": 3}
_EXPERTS = {"marker": "D", "fillstyle": "none", "color": "C2"}


def plot(result: RunResult | Report) -> Figure:
    """Plot the main metrics of base, merge and experts per task, with one panel per metric.

    The merge has 95 % intervals if tasks store outcomes. For a run's result, further panels show
    the values that its algorithm logged over all tasks, one panel per value. Raises `FusionError`
    if there is nothing to plot.
    """
    report = result if isinstance(result, Report) else result.report
    log = None if isinstance(result, Report) else result.side_files.get("metrics.jsonl")
    curves = _curves(log) if isinstance(log, bytes) else {}
    table = None if report is None else build_table({"merged": report}, Intervals())
    groups = [] if table is None else list(_by_metric(table))
    heights = [_FRAME + _ROW * len(entries) for entries in groups] + [_CURVE] * len(curves)
    if not heights:
        raise FusionError(
            "nothing to plot: no tasks were measured, and no values were logged",
            hint="Run the merge with a task pool.",
        )
    figure = new_figure(_WIDTH, sum(heights))
    panels = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    if table is not None:
        for axes, entries in zip(panels, groups, strict=False):
            _draw_tasks(axes, table, entries)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    for axes, (name, curve) in zip(panels[len(groups) :], curves.items(), strict=True):
        axes.plot([*curve], [*curve.values()])
        axes.set(xlabel="step", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", alpha=0.4)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches.

    A notebook shows the figure as the value of a cell. Elsewhere, `matplotlib.pyplot.show()` shows
    it and `figure.savefig` writes it.
    """
    figure = plt.figure(figsize=(width, height), layout="constrained")
    if "inline" in plt.get_backend():
        plt.close(figure)  # otherwise the end of the cell shows it again
    return figure


def _curves(log: bytes) -> dict[str, Curve]:
    """Return the logged values over all tasks by name and step.

    Values of a single task are left out; their names have a slash: `entropy/latin`.
    """
    curves: dict[str, Curve] = {}
    for line in map(json.loads, log.splitlines()):
        step = line.pop("step")
        for name, value in line.items():
            if "/" not in name:
                curves.setdefault(name, {})[step] = value
    return curves


def _by_metric(table: ReportTable) -> Iterator[list[Entry]]:
    tasks = [entry for entry in table.entries if entry.is_task]
    for _, entries in groupby(sorted(tasks, key=_metric_name), key=_metric_name):
        yield list(entries)


def _metric_name(entry: Entry) -> str:
    return str(entry.metric)


def _draw_tasks(axes: Axes, table: ReportTable, entries: Sequence[Entry]) -> None:
    scale = 100 if entries[0].metric.unit == "fraction" else 1
    rows = range(len(entries))
    for number, heading in enumerate(table.headings):
        figures = [entry.figures[number] for entry in entries]
        style: dict[str, Any] = _BASE if number < table.first else _EXPERTS
        if number == table.first:
            ends = [_error_bar(figure, scale) for figure in figures]
            style = {**_MERGED, "xerr": [*zip(*ends, strict=True)]}
        values = [math.nan if figure is None else scale * figure.value for figure in figures]
        axes.errorbar(values, rows, linestyle="none", label=heading, **style)
    axes.set_yticks(rows, [escape_control(entry.label) for entry in entries], parse_math=False)
    axes.set(xlabel=_metric_name(entries[0]), ylim=(len(entries) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.4)


def _error_bar(figure: Number | None, scale: float) -> tuple[float, float]:
    """Return the distances of an interval's ends below and above a value."""
    if figure is None or figure.interval is None:
        return 0.0, 0.0
    low, high = figure.interval
    return scale * (figure.value - low), scale * (high - figure.value)
