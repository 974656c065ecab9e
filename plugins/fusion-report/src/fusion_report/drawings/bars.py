"""Bars beside each other: a group a task, a bar a model, and a mark for the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from fusion_report.drawings.svg import Drawing, is_narrow, number, set_height, shown
from fusion_report.theme import PAINT, SERIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUP, _BAR, _SINGLE = 10, 11, 16  # units of height
_HATCHES = ("", "///", "...", "xxx")


@dataclass(frozen=True)
class Bars:
    """Values by series and group; NaN where there is none."""

    groups: Sequence[str]
    series: Mapping[str, Sequence[float]]
    #: a mark across each group, and its name
    marks: tuple[str, Sequence[float]] | None = None
    #: where a line stands, and its name
    line: tuple[str, float] | None = None
    unit: str = ""

    def drawing(self, name: str, title: str, words: str, *, wide: float) -> Drawing:
        """Return the picture."""
        return Drawing(name, title, words, self._draw, wide)

    def _draw(self, figure: Figure, width: float) -> None:
        bar = _SINGLE if len(self.series) == 1 else _BAR
        pitch = bar * len(self.series) + _GROUP
        keys = self._keys()
        columns = 1 if is_narrow(width) else 4
        set_height(figure, pitch * len(self.groups) + 40 + 18 * -(-len(keys) // columns))
        axes = figure.subplots()
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        tall = bar / pitch
        for place, values in enumerate(self.series.values()):
            shift = (place - (len(self.series) - 1) / 2) * tall
            where = [group + shift for group in range(len(self.groups))]
            axes.barh(where, values, tall * 0.86, **_look(place))  # type: ignore[arg-type]
            if len(self.series) == 1:
                self._say(axes, where, values)
        self._mark(axes, tall * len(self.series) / 2)
        axes.set(ylim=(len(self.groups) - 0.5, -0.5), xlim=(0, None), xlabel=self.unit)
        axes.set_yticks(range(len(self.groups)), [shown(each, 16) for each in self.groups])
        if keys:
            figure.legend(
                handles=keys,
                loc="outside upper left",
                ncols=columns,
                labelcolor=PAINT["ink"],
                handlelength=1.4,
                borderpad=0,
            )

    def _say(self, axes: Axes, where: Sequence[float], values: Sequence[float]) -> None:
        """Write values in a column beside their bars."""
        for y, value in zip(where, values, strict=True):
            if math.isfinite(value):
                axes.annotate(
                    number(value),
                    (1, y),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(38, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center_baseline",
                    color=PAINT["ink"],
                )

    def _mark(self, axes: Axes, half: float) -> None:
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

    def _keys(self) -> list[Patch | Line2D]:
        """Return what the legend holds; nothing where one series says all."""
        found: list[Patch | Line2D] = []
        if len(self.series) > 1 or self.marks or self.line:
            found += [
                Patch(label=shown(name), **_look(place))  # type: ignore[arg-type]
                for place, name in enumerate(self.series)
            ]
        plain = {"color": PAINT["ink"], "linestyle": "none"}
        if self.marks is not None:
            found.append(
                Line2D([], [], marker="|", markersize=11, mew=2.4, label=self.marks[0], **plain)  # type: ignore[arg-type]
            )
        if self.line is not None:
            found.append(
                Line2D([], [], color=PAINT["ink"], linestyle=(0, (4, 3)), label=self.line[0])
            )
        return found


def _look(place: int) -> dict[str, object]:
    """Return how a series is drawn: colours come again with another pattern."""
    hatch = _HATCHES[place // SERIES % len(_HATCHES)]
    return {
        "facecolor": PAINT[f"s{place % SERIES}"],
        "hatch": hatch,
        "edgecolor": PAINT["card"] if hatch else "none",
        "linewidth": 0,
    }
