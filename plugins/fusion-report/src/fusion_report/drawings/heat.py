"""Heat maps: a cell a row and column, coloured by how far a value is from a neutral one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from matplotlib.patches import PathPatch
from matplotlib.path import Path

from fusion_report.drawings.svg import Drawing, bare, is_narrow, number, set_height, shown
from fusion_report.theme import PAINT, level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 25  # units of height
_SHOWS_NUMBER = 25  # units of width
_LINE = 16  # units of height
_TURNED = 50  # degrees


@dataclass(frozen=True)
class Heat:
    """What a heat map shows: values of rows, a column each; NaN for cells without any."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    #: the value without a colour
    neutral: float = 0.0
    #: the value without a colour is the least, and the scale has one side
    from_zero: bool = False
    #: how far the scale goes at least
    least: float = 0.0
    #: columns by what they are part of, each with how many there are; their own names do not stand
    groups: Mapping[str, int] | None = None

    @property
    def reach(self) -> float:
        """How far the ends of the scale are from the neutral value."""
        known = [value for row in self.values for value in row if math.isfinite(value)]
        return max([self.least, *(abs(value - self.neutral) for value in known)])

    @property
    def scale(self) -> list[tuple[int, str]]:
        """The steps of a legend, with what some of them stand for."""
        named = {0: self.neutral - self.reach, 8: self.neutral, 16: self.neutral + self.reach}
        steps = range(8 if self.from_zero else 0, 17)
        return [(step, f"{named[step]:.3g}" if step in named else "") for step in steps]

    def drawing(self, name: str, title: str, words: str, *, wide: float) -> Drawing:
        """Return the picture."""
        return Drawing(name, title, words, self._draw, wide)

    def _draw(self, figure: Figure, width: float) -> None:
        longest = 16 if is_narrow(width) else 24
        rows = [shown(row, longest) for row in self.rows]
        character = 6.4 if is_narrow(width) else 7.2
        cell = (width - character * max(map(len, rows))) / len(self.columns)
        axes = figure.subplots()
        axes.set(xlim=(0, len(self.columns)), ylim=(len(rows), 0))
        axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
        axes.xaxis.tick_top()
        bare(axes)
        labels = self._labels(longest)
        across = all(size * cell > character * len(label) for label, size, _ in labels)
        if not across:
            labels = _apart(labels, _LINE / cell)
        turned = {} if across else {"rotation": _TURNED, "ha": "left"}
        axes.set_xticks([place for *_, place in labels], [each for each, *_ in labels], **turned)  # type: ignore[arg-type]
        longest = max(len(label) for label, *_ in labels)
        set_height(figure, _CELL * len(rows) + (26 if across else character * longest * 0.8 + 14))
        self._fill(axes)
        if cell >= _SHOWS_NUMBER:
            self._write(axes, narrow=is_narrow(width))

    def _labels(self, longest: int) -> list[tuple[str, int, float]]:
        """Return what stands above the columns: text, over how many of them, and its middle."""
        sizes = self.groups or dict.fromkeys(self.columns, 1)
        ends = accumulate(sizes.values())
        return [
            (shown(name, longest), size, end - size / 2)
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        ]

    def _fill(self, axes: Axes) -> None:
        """Draw all cells of a colour as one shape."""
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
            paths = [Path([*each, each[0]], closed=True) for each in shapes]
            shape = Path.make_compound_path(*paths)
            axes.add_patch(PathPatch(shape, facecolor=PAINT[f"d{step}"], linewidth=0))

    def _write(self, axes: Axes, *, narrow: bool) -> None:
        for y, row in enumerate(self.values):
            for x, value in enumerate(row):
                if math.isfinite(value):
                    ink = PAINT[f"i{level(value, self.neutral, self.reach)}"]
                    text = number(value).replace("0.", ".") if narrow else number(value)
                    axes.text(
                        x + 0.5,
                        y + 0.5,
                        text,
                        color=ink,
                        ha="center",
                        va="center_baseline",
                        fontsize="small",
                    )


def _apart(labels: Sequence[tuple[str, int, float]], least: float) -> list[tuple[str, int, float]]:
    """Leave out labels that would stand in those before them."""
    kept = [labels[0]]
    for label in labels[1:]:
        if label[-1] - kept[-1][-1] >= least:
            kept.append(label)
    return kept
