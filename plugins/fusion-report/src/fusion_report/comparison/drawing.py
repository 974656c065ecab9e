"""Print paired tests as a table."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_core.commands import escape_control
from fusion_report.comparison.differences import SIGN_FLIPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_report.comparison.differences import Difference

_PIPE_WIDTH = 240  # columns if stdout is not a terminal


def print_differences(first: str, second: str, differences: Sequence[Difference]) -> None:
    """Print the differences of the second model from the first on the same examples."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task", overflow="fold")
    for heading in ("difference", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for difference in differences:
        style = None if difference.is_task else "bold"
        table.add_row(*map(_text, difference.cells), style=style)
    tests = dict.fromkeys(difference.test for difference in differences if difference.is_task)
    footer = ", ".join(tests)
    if any(not difference.is_task for difference in differences):
        footer = f"tasks: {footer}; average: {SIGN_FLIPS}"
    notes = [footer, "p-values are not corrected for multiple tests"]
    if any(one.interval is None and not math.isnan(one.value) for one in differences):
        notes.append("no interval: too few examples differ")
    console.print()
    console.print(_text(f"{second} - {first}, on the same examples"), soft_wrap=True)
    console.print(table)
    console.print(_text("; ".join(notes)), soft_wrap=True)


def _text(value: str) -> Text:
    """Return a text on one line, without control characters."""
    return Text(escape_control(" ".join(value.splitlines())))
