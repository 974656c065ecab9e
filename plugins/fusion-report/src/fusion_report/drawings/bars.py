"""Grouped bars: one group per task, one bar per model, and a mark for the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from fusion_report.drawings.svg import Plot, format_number, is_narrow, set_height, shorten
from fusion_report.theme import PAINT, SERIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUP, _BAR, _SINGLE = 10, 11, 16  # heights in units
_HATCHES = ("", "///", "...", "xxx")


@dataclass(frozen=True)
class Bars(Plot):
    """A bar chart of values by series and group; NaN leaves out a bar."""

    groups: Sequence[str]
    series: Mapping[str, Sequence[float]]
    #: name of the marks, and one value per group
    marks: tuple[str, Sequence[float]] | None = None
    #: name and value of a vertical line
    line: tuple[str, float] | None = None
    unit: str = ""

    def draw(self, figure: Figure, width: float) -> None:
        """Draw the bars."""
        bar = _SINGLE if len(self.series) == 1 else _BAR
        pitch = bar * len(self.series) + _GROUP
        handles = self._legend_handles()
        columns = 1 if is_narrow(width) else 4
        set_height(figure, pitch * len(self.groups) + 40 + 18 * -(-len(handles) // columns))
        axes = figure.subplots()
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        thickness = bar / pitch
        for index, values in enumerate(self.series.values()):
            shift = (index - (len(self.series) - 1) / 2) * thickness
            heights = [group + shift for group in range(len(self.groups))]
            axes.barh(heights, values, thickness * 0.86, **_style(index))  # type: ignore[arg-type]
            if len(self.series) == 1:
                self._write_values(axes, heights, values)
        self._draw_marks(axes, thickness * len(self.series) / 2)
        axes.set(ylim=(len(self.groups) - 0.5, -0.5), xlim=(0, None), xlabel=self.unit)
        axes.set_yticks(range(len(self.groups)), [shorten(group, 16) for group in self.groups])
        if handles:
            figure.legend(
                handles=handles,
                loc="outside upper left",
                ncols=columns,
                labelcolor=PAINT["ink"],
                handlelength=1.4,
                borderpad=0,
            )

    def _write_values(self, axes: Axes, heights: Sequence[float], values: Sequence[float]) -> None:
        """Write values in a column to the right of their bars."""
        for y, value in zip(heights, values, strict=True):
            if math.isfinite(value):
                axes.annotate(
                    format_number(value),
                    (1, y),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(38, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center_baseline",
                    color=PAINT["ink"],
                )

    def _draw_marks(self, axes: Axes, half: float) -> None:
        if self.marks is not None:
            for group, value in enumerate(self.marks[1]):
                axes.vlines(
                    value,
                    group - half,
                    group + half,
                    colors=PAINT["ink"],
                    linewidth=2.4,
                    path_effects=[withStroke(linewidth=5, foreground=PAINT["card"])],
                )
        if self.line is not None:
            axes.axvline(self.line[1], color=PAINT["ink"], linewidth=1.2, linestyle=(0, (4, 3)))

    def _legend_handles(self) -> list[Patch | Line2D]:
        """Return the entries of the legend; empty for a single series without marks."""
        handles: list[Patch | Line2D] = []
        if len(self.series) > 1 or self.marks or self.line:
            handles += [
                Patch(label=shorten(name), **_style(index))  # type: ignore[arg-type]
                for index, name in enumerate(self.series)
            ]
        plain = {"color": PAINT["ink"], "linestyle": "none"}
        if self.marks is not None:
            handles.append(
                Line2D([], [], marker="|", markersize=11, mew=2.4, label=self.marks[0], **plain)  # type: ignore[arg-type]
            )
        if self.line is not None:
            handles.append(
                Line2D([], [], color=PAINT["ink"], linestyle=(0, (4, 3)), label=self.line[0])
            )
        return handles


def _style(index: int) -> dict[str, object]:
    """Return the style of a series: after all colours, they repeat with another pattern."""
    hatch = _HATCHES[index // SERIES % len(_HATCHES)]
    return {
        "facecolor": PAINT[f"s{index % SERIES}"],
        "hatch": hatch,
        "edgecolor": PAINT["card"] if hatch else "none",
        "linewidth": 0,
    }
