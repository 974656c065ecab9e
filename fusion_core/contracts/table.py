"""A table of figures, independent of how it is drawn: on a terminal, on paper, in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from fusion_core.contracts.measurements import FRACTION, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_core.contracts.bootstrap import Interval
    from fusion_core.contracts.intervals import Intervals


@dataclass(frozen=True)
class Figure:
    """A number in the table, with an interval that is computed on first use."""

    value: float
    spread: Callable[[], Interval | None] = lambda: None

    @cached_property
    def interval(self) -> Interval | None:
        """The 95 % interval; None without one."""
        return self.spread()


@dataclass(frozen=True)
class Entry:
    """A row of the table: a task or an average."""

    label: str
    metric: Metric
    #: one figure per column; None for an empty cell
    figures: Sequence[Figure | None]
    is_task: bool = True

    @property
    def measure(self) -> str:
        """The description of a task's metric; empty for averages."""
        return str(self.metric) if self.is_task else ""

    def shown(self, figure: Figure | None) -> str:
        """Format a figure for people: `74.5`, `74.5 ±1.1`, or `99.0 -0.9+0.5` if lopsided."""
        if figure is None:
            return ""
        text = self.metric.shown(figure.value)
        if figure.interval is None:
            return text
        scale, decimals = 100 if self.metric.unit == FRACTION else 1, len(text.partition(".")[2])
        down, up = (scale * (end - figure.value) for end in figure.interval)
        if abs(up + down) <= (up - down) / 10:
            return f"{text} ±{max(up, -down):.{decimals}f}"
        return f"{text} {down:+.{decimals}f}{up:+.{decimals}f}"


@dataclass(frozen=True)
class ReportTable:
    """The figures of one or more reports."""

    headings: Sequence[str]
    entries: Sequence[Entry]
    #: the index of the first measured model's column; columns of bases precede it
    first: int
    #: the tasks that averages are over: all models have them, with the same main metric
    shared: Sequence[str]
    #: the object that computes the figures' intervals; None for a table without intervals
    intervals: Intervals | None = None

    @property
    def is_mixed(self) -> bool:
        """Whether tasks have different metrics, which rows must then name."""
        return len({entry.metric for entry in self.entries if entry.is_task}) > 1

    @property
    def measure(self) -> str:
        """The description of the metric that all tasks share; empty if they have different ones."""
        return "" if self.is_mixed else next((e.measure for e in self.entries if e.is_task), "")

    @property
    def interval_note(self) -> str:
        """The meaning of the intervals, or why there are none; empty for a table without them."""
        if self.intervals is None:
            return ""
        figures = [figure for entry in self.entries for figure in entry.figures if figure]
        if all(figure.interval is None for figure in figures):
            return f"no intervals: {self.intervals.missing}"
        return f"±: 95 % intervals over {self.intervals.over}; -1.9+1.2: so far down, so far up"

    def by_task(self) -> list[list[str]]:
        """Return cells of text: headings, then one row per task or average."""
        rows = [["task", *(["metric"] if self.is_mixed else []), *self.headings]]
        for entry in self.entries:
            labels = [entry.label, *([entry.measure] if self.is_mixed else [])]
            rows.append([*labels, *map(entry.shown, entry.figures)])
        return rows

    def by_model(self) -> list[list[str]]:
        """Return the same cells with one row per model, for many models."""
        columns = []
        for entry in self.entries:
            measure = f" ({entry.measure})" if entry.measure and self.is_mixed else ""
            columns.append([f"{entry.label}{measure}", *map(entry.shown, entry.figures)])
        return list(map(list, zip(["model", *self.headings], *columns, strict=True)))

    def as_html(self, caption: str = "") -> str:
        """Return the table as unstyled HTML.

        The metric that all tasks share is put before the caption; otherwise a column names metrics.
        """
        headings, *rows = self.by_task()
        return html_table(headings, rows, "; ".join(filter(None, [self.measure, caption])))


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return rows under headings as unstyled HTML, for notebooks.

    Cells are escaped, since names of models may come from untrusted files.
    """
    lines = [f"<th>{'</th><th>'.join(map(escape, headings))}</th>"]
    lines += [f"<td>{'</td><td>'.join(map(escape, row))}</td>" for row in rows]
    header = caption and f"<caption>{escape(caption)}</caption>"
    return f"<table>{header}<tr>{'</tr><tr>'.join(lines)}</tr></table>"
