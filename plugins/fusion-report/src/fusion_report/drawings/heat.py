"""Heat maps: cells are coloured by their distance from a neutral value."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from matplotlib.patches import PathPatch
from matplotlib.path import Path

from fusion_report.drawings.svg import (
    Plot,
    format_number,
    is_narrow,
    remove_frame,
    set_height,
    shorten,
)
from fusion_report.theme import PAINT, level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL_HEIGHT = 25  # units
_MIN_NUMBER_WIDTH = 25  # units; narrower cells show no number
_LINE_HEIGHT = 16  # units
_LABEL_ANGLE = 50  # degrees


@dataclass(frozen=True)
class Heat(Plot):
    """A heat map of values by row and column; NaN leaves a cell empty."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    #: the value without colour
    neutral: float = 0.0
    #: whether the neutral value is the smallest, so that the scale has one side
    from_zero: bool = False
    #: smallest distance of the scale's ends from the neutral value
    least: float = 0.0
    #: group name -> number of columns; replaces the names of columns
    groups: Mapping[str, int] | None = None

    @property
    def reach(self) -> float:
        """The distance of the scale's ends from the neutral value."""
        known = [value for row in self.values for value in row if math.isfinite(value)]
        return max([self.least, *(abs(value - self.neutral) for value in known)])

    @property
    def scale(self) -> list[tuple[int, str]]:
        """The steps of the legend with labels; most labels are empty."""
        named = {0: self.neutral - self.reach, 8: self.neutral, 16: self.neutral + self.reach}
        steps = range(8 if self.from_zero else 0, 17)
        return [(step, f"{named[step]:.3g}" if step in named else "") for step in steps]

    def draw(self, figure: Figure, width: float) -> None:
        """Draw the cells and labels."""
        longest = 16 if is_narrow(width) else 24
        rows = [shorten(row, longest) for row in self.rows]
        character = 6.4 if is_narrow(width) else 7.2
        cell = (width - character * max(map(len, rows))) / len(self.columns)
        axes = figure.subplots()
        axes.set(xlim=(0, len(self.columns)), ylim=(len(rows), 0))
        axes.set_yticks([row + 0.5 for row in range(len(rows))], rows)
        axes.xaxis.tick_top()
        remove_frame(axes)
        labels = self._labels(longest)
        is_horizontal = all(size * cell > character * len(text) for text, size, _ in labels)
        if not is_horizontal:
            labels = _drop_overlapping(labels, _LINE_HEIGHT / cell)
        style = {} if is_horizontal else {"rotation": _LABEL_ANGLE, "ha": "left"}
        axes.set_xticks([x for *_, x in labels], [text for text, *_ in labels], **style)  # type: ignore[arg-type]
        longest = max(len(text) for text, *_ in labels)
        label_height = 26 if is_horizontal else character * longest * 0.8 + 14
        set_height(figure, _CELL_HEIGHT * len(rows) + label_height)
        self._fill(axes)
        if cell >= _MIN_NUMBER_WIDTH:
            self._write_values(axes, narrow=is_narrow(width))

    def _labels(self, longest: int) -> list[tuple[str, int, float]]:
        """Return the labels above the columns: text, number of columns, and centre."""
        sizes = self.groups or dict.fromkeys(self.columns, 1)
        ends = accumulate(sizes.values())
        return [
            (shorten(name, longest), size, end - size / 2)
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        ]

    def _fill(self, axes: Axes) -> None:
        """Draw all cells of one colour as one shape, which keeps the file small."""
        starts = {0, *accumulate((self.groups or {}).values())}
        gap = 0.02 if self.groups is None else 0.0
        cells: dict[int, list[list[tuple[float, float]]]] = {}
        for y, row in enumerate(self.values):
            for x, value in enumerate(row):
                if math.isfinite(value):
                    left = x + (0.15 if self.groups and x in starts else gap)
                    corners = [(left, y + 0.04), (x + 1 - gap, y + 0.04)]
                    corners += [(x + 1 - gap, y + 0.96), (left, y + 0.96)]
                    cells.setdefault(level(value, self.neutral, self.reach), []).append(corners)
        for step, shapes in sorted(cells.items()):
            paths = [Path([*corners, corners[0]], closed=True) for corners in shapes]
            shape = Path.make_compound_path(*paths)
            axes.add_patch(PathPatch(shape, facecolor=PAINT[f"d{step}"], linewidth=0))

    def _write_values(self, axes: Axes, *, narrow: bool) -> None:
        for y, row in enumerate(self.values):
            for x, value in enumerate(row):
                if math.isfinite(value):
                    ink = PAINT[f"i{level(value, self.neutral, self.reach)}"]
                    text = format_number(value)
                    axes.text(
                        x + 0.5,
                        y + 0.5,
                        drop_leading_zero(text) if narrow else text,
                        color=ink,
                        ha="center",
                        va="center_baseline",
                        fontsize="small",
                    )


def drop_leading_zero(text: str) -> str:
    """Return a number without the zero before its point: .5 for 0.5, and 10.5 as it is."""
    return re.sub(r"(?<!\d)0\.", ".", text)


def _drop_overlapping(
    labels: Sequence[tuple[str, int, float]], distance: float
) -> list[tuple[str, int, float]]:
    """Drop labels that are closer than `distance` to the label before them."""
    visible = [labels[0]]
    for label in labels[1:]:
        if label[-1] - visible[-1][-1] >= distance:
            visible.append(label)
    return visible
