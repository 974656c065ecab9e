"""Paired tests as a table on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_core.commands import escape_control
from fusion_report.comparison.differences import BOOTSTRAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_report.comparison.differences import Difference

_PIPE = 240  # columns: programs and files need no folding


def print_differences(first: str, second: str, differences: Sequence[Difference]) -> None:
    """Print how the second of two models differs from the first on the same examples."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold")
    for heading in ("difference", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for difference in differences:
        style = None if difference.is_task else "bold"
        table.add_row(*map(_text, difference.cells), style=style)
    tests = dict.fromkeys(difference.test for difference in differences if difference.is_task)
    tested = ", ".join(tests)
    if any(not difference.is_task for difference in differences):
        tested = f"tasks: {tested}; average: {BOOTSTRAP}"
    console.print()
    console.print(_text(f"{second} - {first}, on the same examples"), soft_wrap=True)
    console.print(table)
    console.print(_text(f"{tested}; each p by itself, not corrected for many"), soft_wrap=True)


def _text(value: str) -> Text:
    """Return a text that a terminal shows as it is, on one line."""
    return Text(escape_control(" ".join(value.splitlines())))
