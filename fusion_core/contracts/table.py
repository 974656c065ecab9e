"""A table of figures, before anybody draws it: on a terminal, in a paper, a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from fusion_core.contracts.measures import FRACTION, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_core.contracts.bootstrap import Interval
    from fusion_core.contracts.intervals import Intervals


@dataclass(frozen=True)
class Figure:
    """A number in the table."""

    value: float
    spread: Callable[[], Interval | None] = lambda: None

    @cached_property
    def interval(self) -> Interval | None:
        """Its 95 % interval; None where there is none."""
        return self.spread()


@dataclass(frozen=True)
class Entry:
    """A line of the table: a task or an average."""

    label: str
    metric: Metric
    #: one for each column; None for an empty cell
    figures: Sequence[Figure | None]
    is_task: bool = True

    @property
    def measure(self) -> str:
        """What a task is measured by; nothing for averages, which tell of no metric."""
        return str(self.metric) if self.is_task else ""

    def shown(self, figure: Figure | None) -> str:
        """Return a figure for people: 74.5, 74.5 ±1.1, or 99.0 -0.9+0.5 where that is lopsided."""
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
class Table:
    """The figures of reports."""

    headings: Sequence[str]
    entries: Sequence[Entry]
    #: the column of the first model; the base's stand before it
    first: int
    #: the tasks that averages are over: those of all models, by the same main metric
    shared: Sequence[str]
    #: what figures have their intervals of; None for a table without any
    intervals: Intervals | None = None

    @property
    def is_mixed(self) -> bool:
        """Tell whether tasks are measured by different metrics, which then must be named."""
        return len({entry.metric for entry in self.entries if entry.is_task}) > 1

    def by_task(self) -> list[list[str]]:
        """Return cells for people: headings, then one row per task or average."""
        rows = [["task", *(["metric"] if self.is_mixed else []), *self.headings]]
        for entry in self.entries:
            named = [entry.label, *([entry.measure] if self.is_mixed else [])]
            rows.append([*named, *map(entry.shown, entry.figures)])
        return rows

    def by_model(self) -> list[list[str]]:
        """Return the same with one row per model, for more models than fit side by side."""
        columns = [
            [_heading(entry, self), *map(entry.shown, entry.figures)] for entry in self.entries
        ]
        return list(map(list, zip(["model", *self.headings], *columns, strict=True)))

    def as_html(self, caption: str = "") -> str:
        """Return the table as unstyled HTML.

        The caption begins with the metric of all tasks. Where metrics differ, a column names them.
        """
        headings, *rows = self.by_task()
        measure = "" if self.is_mixed else next((e.measure for e in self.entries if e.is_task), "")
        return html_table(headings, rows, "; ".join(filter(None, [measure, caption])))


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return rows under headings as unstyled HTML, for notebooks.

    Cells are escaped: names of models may come from anywhere.
    """
    lines = [f"<th>{'</th><th>'.join(map(escape, headings))}</th>"]
    lines += [f"<td>{'</td><td>'.join(map(escape, row))}</td>" for row in rows]
    above = caption and f"<caption>{escape(caption)}</caption>"
    return f"<table>{above}<tr>{'</tr><tr>'.join(lines)}</tr></table>"


def _heading(entry: Entry, table: Table) -> str:
    """Return the heading of a column that has an entry's figures."""
    is_told = entry.is_task and table.is_mixed
    return f"{entry.label} ({entry.metric.name})" if is_told else entry.label
