"""What changes from step to step: raw values and their running mean, or many paths at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_report.drawings.svg import Drawing, is_narrow, set_height, shown
from fusion_report.theme import PAINT, SERIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Series = Mapping[str, Sequence[float]]

_MOST = 400  # points of a raw line
_PANEL, _CHART, _LABEL = 120, 300, 17  # units of height
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential mean over about a tenth of the steps, without a bias to the start.

    Values that are not finite are left out.
    """
    keep = 1 - 1 / span(values)
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        found.append(mean / weight if weight else math.nan)
    return found


def _thinned(count: int) -> list[int]:
    """Return the places of the points that are drawn, the last among them."""
    places = range(0, count, -(-count // _MOST))
    return [*places, *({count - 1} - {*places})]


def span(values: Sequence[float]) -> int:
    """Return over how many steps values are smoothed."""
    return max(len(values) // 10, 2)


@dataclass(frozen=True)
class Panels:
    """A small chart for each series, raw and smoothed, all on one scale."""

    steps: Sequence[int]
    series: Series

    def drawing(self, name: str, title: str, words: str, *, wide: float) -> Drawing:
        """Return the picture."""
        return Drawing(name, title, words, self._draw, wide)

    def _draw(self, figure: Figure, width: float) -> None:
        columns = min(len(self.series), 2 if is_narrow(width) else 4)
        rows = -(-len(self.series) // columns)
        set_height(figure, (_PANEL if len(self.series) > 1 else 200) * rows + 24)
        every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, (name, values) in zip(every, self.series.items(), strict=False):
            if len(self.series) > 1:
                axes.set_title(shown(name, 20), color=PAINT["ink"])
            self._plot(axes, values)
        for axes in list(every)[len(self.series) :]:
            axes.set_visible(False)
        figure.supxlabel("step", color=PAINT["muted"])

    def _plot(self, axes: Axes, values: Sequence[float]) -> None:
        kept = _thinned(len(values))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        steps, mean = [self.steps[place] for place in kept], smoothed(values)
        raw = [values[place] for place in kept]
        axes.plot(steps, raw, color=PAINT["s0"], alpha=0.35, linewidth=1)
        axes.plot(steps, [mean[place] for place in kept], color=PAINT["s0"], linewidth=2)


@dataclass(frozen=True)
class Paths:
    """A line for each series in one chart, with its name at its end."""

    steps: Sequence[int]
    series: Series
    #: where all began
    neutral: float | None = None

    def drawing(self, name: str, title: str, words: str, *, wide: float) -> Drawing:
        """Return the picture."""
        return Drawing(name, title, words, self._draw, wide)

    def _draw(self, figure: Figure, width: float) -> None:
        height = max(_CHART, _LABEL * len(self.series) + 50)
        set_height(figure, height)
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.tick_params(length=0)
        if self.neutral is not None:
            axes.axhline(self.neutral, color=PAINT["muted"], linewidth=1, linestyle=(0, (4, 3)))
        kept = _thinned(len(self.steps))
        steps = [self.steps[place] for place in kept]
        for place, values in enumerate(self.series.values()):
            dash = _DASHES[place // SERIES % len(_DASHES)]
            axes.plot(
                steps,
                [values[place] for place in kept],
                color=PAINT[f"s{place % SERIES}"],
                linestyle=dash,
            )
        axes.set_xlabel("step")
        axes.margins(x=0)
        self._label(axes, height, 12 if is_narrow(width) else 20)

    def _label(self, axes: Axes, height: float, longest: int) -> None:
        """Write names beside the ends of their lines, apart from each other."""
        low, high = axes.get_ylim()
        ends = {name: values[-1] for name, values in self.series.items()}
        order = sorted(ends, key=lambda name: ends[name])
        apart = (high - low) * _LABEL / (height - 50)
        for name, y in zip(order, spread([ends[each] for each in order], apart), strict=True):
            place = list(self.series).index(name)
            end = (self.steps[-1], ends[name])
            axes.annotate(
                shown(name, longest),
                end,
                xytext=(1.04, y),
                textcoords=axes.get_yaxis_transform(),
                va="center",
                color=PAINT["ink"],
                arrowprops={
                    "arrowstyle": "-",
                    "color": PAINT[f"s{place % SERIES}"],
                    "linewidth": 1,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )


def spread(values: Sequence[float], apart: float) -> list[float]:
    """Move ascending values away from each other until they are `apart`, about where they were."""
    groups: list[tuple[float, int]] = []
    for value in values:
        middle, count = value, 1
        while groups and groups[-1][0] + groups[-1][1] * apart / 2 > middle - count * apart / 2:
            before, size = groups.pop()
            middle = (before * size + middle * count) / (size + count)
            count += size
        groups.append((middle, count))
    return [
        middle + (number - (count - 1) / 2) * apart
        for middle, count in groups
        for number in range(count)
    ]
