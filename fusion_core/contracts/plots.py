"""Pictures of what was measured and logged, by matplotlib, which is not required.

They are for a glance in a notebook; the plugin `fusion-report` draws all that is known of runs.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.measures import FRACTION
from fusion_core.errors import FusionError
from fusion_core.machine.installed import import_optional
from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusion_core.contracts.table import Entry, Table
    from fusion_core.contracts.table import Figure as Number

    #: values by step
    Curve = Mapping[int, float]

_WIDTH, _ROW, _FRAME, _CURVE = 6.4, 0.3, 0.9, 2.0  # inches
#: How the models are drawn: the base, the merge, the experts.
_BASE = {"marker": "|", "markersize": 13, "markeredgewidth": 2, "color": "0.45"}
_MERGED = {"marker": "o", "color": "C0", "capsize": 3}
_EXPERTS = {"marker": "D", "fillstyle": "none", "color": "C2"}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; raises `FusionError` without matplotlib.

    A notebook shows it as the value of a cell; elsewhere `matplotlib.pyplot.show()` does, and
    `figure.savefig` writes it.
    """
    pyplot = import_optional("matplotlib.pyplot", "plot")
    figure: Figure = pyplot.figure(figsize=(width, height), layout="constrained")
    if "inline" in pyplot.get_backend():
        pyplot.close(figure)  # else the end of the cell shows it a second time
    return figure


def plot(table: Table | None, curves: Mapping[str, Curve]) -> Figure:
    """Draw the tasks of a single model, a panel a metric, and curves below, a panel each.

    Raises `FusionError` without matplotlib, and where there is nothing to draw.
    """
    groups = list(_by_metric(table)) if table is not None else []
    heights = [_FRAME + _ROW * len(each) for each in groups] + [_CURVE] * len(curves)
    if not heights:
        raise FusionError(
            "there is nothing to draw: no tasks were measured, and nothing was logged",
            hint="Merge with tasks: name a task pool.",
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


def _by_metric(table: Table) -> Iterator[list[Entry]]:
    tasks = [entry for entry in table.entries if entry.is_task]
    for _, entries in groupby(sorted(tasks, key=_metric), key=_metric):
        yield list(entries)


def _metric(entry: Entry) -> str:
    return str(entry.metric)


def _draw_tasks(axes: Axes, table: Table, entries: Sequence[Entry]) -> None:
    scale = 100 if entries[0].metric.unit == FRACTION else 1
    places = range(len(entries))
    for number, heading in enumerate(table.headings):
        values = [_value(each.figures[number], scale) for each in entries]
        if number == table.first:
            ends = [_ends(each.figures[number], scale) for each in entries]
            look: dict[str, Any] = {**_MERGED, "xerr": [*zip(*ends, strict=True)]}
        else:
            look = _BASE if number < table.first else _EXPERTS
        axes.errorbar(values, places, linestyle="none", label=heading, **look)
    names = [printable(each.label) for each in entries]
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel=_metric(entries[0]), ylim=(len(entries) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.4)


def _value(figure: Number | None, scale: float) -> float:
    return math.nan if figure is None else scale * figure.value


def _ends(figure: Number | None, scale: float) -> tuple[float, float]:
    """Return how far an interval reaches below a figure and above it."""
    if figure is None or figure.interval is None:
        return 0.0, 0.0
    low, high = figure.interval
    return scale * (figure.value - low), scale * (high - figure.value)
