"""How results are printed: tables for people, JSON for programs; results go to stdout alone."""

from __future__ import annotations

import json
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import typer

from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fusion_core.contracts.report import Report
    from fusion_core.plugins.manager import PluginManager


def print_json(value: Any) -> None:  # noqa: ANN401 - anything JSON holds
    """Print a value as JSON, with JSON's own escapes for all that a terminal would obey."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings: drawn on a terminal, plain columns into a pipe.

    Cells are escaped and on one line each: names of models may come from anywhere.
    """
    rows = [_cells(row) for row in rows]
    if sys.stdout.isatty():
        _print_drawn(headings, rows)
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_groups(headings: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Print rows in groups with titles, under one line of headings.

    The last cell of a row is its text: beside the others on a terminal wide enough for all, and
    on a line of its own elsewhere.
    """
    tables = {title: [_cells(row) for row in rows] for title, rows in groups.items()}
    every = [list(headings), *(row for rows in tables.values() for row in rows)]
    *widths, longest = (max(map(len, column)) for column in zip(*every, strict=True))
    between = "  " if sum(widths) + 2 * len(widths) + longest <= _width() else "\n    "
    print(_styled(_line(headings, widths, between).partition("\n")[0].rstrip(), underline=True))
    for title, rows in tables.items():
        print(f"\n{_styled(printable(title), bold=True)}")
        for row in rows:
            print(_line(row, widths, between))


def warn_of_broken_plugins(plugins: PluginManager) -> None:
    """Say in one line each which plugins failed to load."""
    for plugin in plugins.plugins:
        if plugin.error is not None or plugin.status == "incompatible":
            print_warnings([f"plugin {plugin.distribution} is {plugin.status}: {plugin.detail}"])


def warn_of_experts(reports: Mapping[str, Report]) -> None:
    """Say on stderr which experts score below the base on their own task."""
    from fusion_core.report.below_base import below_base_warnings

    print_warnings(below_base_warnings(reports))


def print_warnings(warnings: Iterable[str]) -> None:
    """Print what a user should know though it stands in no way, on one line each."""
    for said in warnings:
        print(f"warning: {printable(' '.join(said.splitlines()))}", file=sys.stderr)


def _cells(row: Iterable[str]) -> list[str]:
    return [printable(" ".join(cell.splitlines())) for cell in row]


def _line(row: Sequence[str], widths: Sequence[int], between: str) -> str:
    """Lay a row out: its cells, and its text after what stands between them."""
    *cells, text = row
    padded = "  ".join(map(str.ljust, cells, widths))
    return f"{padded.rstrip() if between.startswith(chr(10)) else padded}{between}{text}"


def _width() -> int:
    """Return how many columns a terminal has; a pipe has none."""
    return get_terminal_size().columns if sys.stdout.isatty() else 0


def _styled(text: str, **styles: bool) -> str:
    return typer.style(text, **styles) if sys.stdout.isatty() else text


def _print_drawn(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
