"""Line charts over steps: raw values with their running mean, or several paths in one chart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.drawings.svg import Plot, is_narrow, set_height, shorten
from fusion_report.theme import PAINT, SERIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Series = Mapping[str, Sequence[float]]

_MAX_POINTS = 400  # points per line
_PANEL, _CHART, _LABEL = 120, 300, 17  # heights in units
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential running mean over about a tenth of the steps, without bias to zero.

    Infinities and NaN are ignored.
    """
    decay = 1 - 1 / smoothing_span(values)
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        means.append(mean / weight if weight else math.nan)
    return means


def _select_points(count: int) -> list[int]:
    """Return the indices of the points to draw, including the last one."""
    indices = range(0, count, -(-count // _MAX_POINTS))
    return [*indices, *({count - 1} - {*indices})]


def smoothing_span(values: Sequence[float]) -> int:
    """Return the number of steps over which values are smoothed."""
    return max(len(values) // 10, 2)


@dataclass(frozen=True)
class Panels(Plot):
    """One small chart per series, raw and smoothed, all on one scale."""

    steps: Sequence[int]
    series: Series

    def draw(self, figure: Figure, width: float) -> None:
        """Draw the panels."""
        columns = min(len(self.series), 2 if is_narrow(width) else 4)
        rows = -(-len(self.series) // columns)
        set_height(figure, (_PANEL if len(self.series) > 1 else 200) * rows + 24)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, (name, values) in zip(panels, self.series.items(), strict=False):
            if len(self.series) > 1:
                axes.set_title(shorten(name, 20), color=PAINT["ink"])
            self._plot(axes, values)
        for axes in list(panels)[len(self.series) :]:
            axes.set_visible(False)
        figure.supxlabel("step", color=PAINT["muted"])

    def _plot(self, axes: Axes, values: Sequence[float]) -> None:
        points = _select_points(len(values))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        steps, means = [self.steps[point] for point in points], smooth(values)
        raw = [values[point] for point in points]
        axes.plot(steps, raw, color=PAINT["s0"], alpha=0.35, linewidth=1)
        axes.plot(steps, [means[point] for point in points], color=PAINT["s0"], linewidth=2)


@dataclass(frozen=True)
class Paths(Plot):
    """One line per series in one chart, with its name at its end."""

    steps: Sequence[int]
    series: Series
    #: the common initial value
    neutral: float | None = None

    def draw(self, figure: Figure, width: float) -> None:
        """Draw the lines and their names."""
        height = max(_CHART, _LABEL * len(self.series) + 50)
        set_height(figure, height)
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.tick_params(length=0)
        if self.neutral is not None:
            axes.axhline(self.neutral, color=PAINT["muted"], linewidth=1, linestyle=(0, (4, 3)))
        points = _select_points(len(self.steps))
        steps = [self.steps[point] for point in points]
        for index, values in enumerate(self.series.values()):
            dash = _DASHES[index // SERIES % len(_DASHES)]
            axes.plot(
                steps,
                [values[point] for point in points],
                color=PAINT[f"s{index % SERIES}"],
                linestyle=dash,
            )
        axes.set_xlabel("step")
        axes.margins(x=0)
        self._label(axes, height, 12 if is_narrow(width) else 20)

    def _label(self, axes: Axes, height: float, longest: int) -> None:
        """Write names next to the ends of their lines, without overlaps."""
        low, high = axes.get_ylim()
        ends = {name: values[-1] for name, values in self.series.items()}
        order = sorted(ends, key=lambda name: ends[name])
        distance = (high - low) * _LABEL / (height - 50)
        heights = spread_out([ends[name] for name in order], distance)
        for name, y in zip(order, heights, strict=True):
            index = list(self.series).index(name)
            end = (self.steps[-1], ends[name])
            axes.annotate(
                shorten(name, longest),
                end,
                xytext=(1.04, y),
                textcoords=axes.get_yaxis_transform(),
                va="center",
                color=PAINT["ink"],
                arrowprops={
                    "arrowstyle": "-",
                    "color": PAINT[f"s{index % SERIES}"],
                    "linewidth": 1,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )


def spread_out(values: Sequence[float], distance: float) -> list[float]:
    """Move ascending values apart to at least `distance`, as little as possible."""
    groups: list[tuple[float, int]] = []
    for value in values:
        middle, count = value, 1
        while (
            groups and groups[-1][0] + groups[-1][1] * distance / 2 > middle - count * distance / 2
        ):
            before, size = groups.pop()
            middle = (before * size + middle * count) / (size + count)
            count += size
        groups.append((middle, count))
    return [
        middle + (number - (count - 1) / 2) * distance
        for middle, count in groups
        for number in range(count)
    ]
