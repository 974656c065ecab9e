"""Scatter charts of the score of runs against their cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.ticker import LogLocator, NullFormatter

from fusion_report.drawings.lines import spread_out
from fusion_report.drawings.svg import Plot, is_narrow, set_height, shorten
from fusion_report.theme import PAINT, SERIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

_HEIGHT = 320  # units
_MARKERS = "oDs^vP*X"
_RIGHT = 0.6  # share of the width from which labels are left of their points
_MIN_LOG_RATIO = 10  # ratio of the largest to the smallest cost for a logarithmic axis


@dataclass(frozen=True)
class Scatter(Plot):
    """A scatter chart of named points: cost and value."""

    points: Mapping[str, tuple[float, float]]
    cost: str
    value: str

    def draw(self, figure: Figure, width: float) -> None:
        """Draw the points and their names."""
        set_height(figure, _HEIGHT)
        axes = figure.subplots()
        costs = [cost for cost, _ in self.points.values()]
        if min(costs) > 0 and max(costs) / min(costs) >= _MIN_LOG_RATIO:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=9))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=self.cost, ylabel=self.value)
        axes.grid(visible=True)
        axes.tick_params(length=0, which="both")
        for index, (cost, value) in enumerate(self.points.values()):
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(cost, value, marker, color=PAINT[f"s{index % SERIES}"], markersize=9)
        axes.margins(0.12)
        low, high = axes.get_ylim()
        order = sorted(self.points, key=lambda name: self.points[name][1])
        values = [self.points[name][1] for name in order]
        for name, y in zip(order, spread_out(values, (high - low) * 16 / 260), strict=True):
            pixel = axes.transData.transform(self.points[name])
            is_right = axes.transAxes.inverted().transform(pixel)[0] > _RIGHT
            axes.annotate(
                shorten(name, 16 if is_narrow(width) else 24),
                (self.points[name][0], y),
                xytext=(-9 if is_right else 9, 0),
                textcoords="offset points",
                va="center",
                ha="right" if is_right else "left",
                color=PAINT["ink"],
            )
