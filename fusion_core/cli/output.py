"""Output of results: tables for people, JSON for programs. Only results go to stdout."""

from __future__ import annotations

import json
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import typer

from fusion_core.contracts.measurements import numbers_as_json
from fusion_core.formatting import escape_control

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fusion_core.contracts.report import Report
    from fusion_core.plugins.manager import PluginManager


def print_json(value: Any) -> None:  # noqa: ANN401 - anything JSON holds
    """Print a value as JSON, with NaN and infinity as text. Control characters are escaped."""
    text = json.dumps(numbers_as_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings: drawn on a terminal, plain columns into a pipe.

    Each cell is escaped and put on one line, because names of models are untrusted.
    """
    rows = [_cells(row) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(heading)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_groups(headings: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Print rows in groups with titles, under one line of headings.

    The last cell of a row is a text. On a terminal that is wide enough it follows the other cells;
    elsewhere it has a line of its own.
    """
    tables = {title: [_cells(row) for row in rows] for title, rows in groups.items()}
    every = [list(headings), *(row for rows in tables.values() for row in rows)]
    *widths, longest = (max(map(len, column)) for column in zip(*every, strict=True))
    is_terminal = sys.stdout.isatty()
    columns = get_terminal_size().columns if is_terminal else 0
    one_line = sum(widths) + 2 * len(widths) + longest <= columns

    def align(row: Sequence[str]) -> tuple[str, str]:
        *cells, text = row
        return "  ".join(map(str.ljust, cells, widths)), text

    cells, text = align(headings)
    line = f"{cells}  {text}" if one_line else cells.rstrip()
    print(typer.style(line, underline=True) if is_terminal else line)
    for title, rows in tables.items():
        heading = escape_control(title)
        print(f"\n{typer.style(heading, bold=True) if is_terminal else heading}")
        for cells, text in map(align, rows):
            print(f"{cells}  {text}" if one_line else f"{cells.rstrip()}\n    {text}")


def _cells(row: Iterable[str]) -> list[str]:
    return [escape_control(" ".join(cell.splitlines())) for cell in row]


def warn_of_broken_plugins(plugins: PluginManager) -> None:
    """Print one warning per plugin that failed to load."""
    for plugin in plugins.plugins:
        if plugin.error is not None or plugin.status == "incompatible":
            print_warnings([f"plugin {plugin.distribution} is {plugin.status}: {plugin.detail}"])


def warn_of_experts(reports: Mapping[str, Report]) -> None:
    """Print a warning per expert that scores below the base on its own task."""
    from fusion_core.report.below_base import below_base_warnings

    print_warnings(below_base_warnings(reports))


def print_warnings(warnings: Iterable[str]) -> None:
    """Print warnings on stderr, one line each."""
    for warning in warnings:
        print(f"warning: {escape_control(' '.join(warning.splitlines()))}", file=sys.stderr)
