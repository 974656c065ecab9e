"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fusion_core.progress import Advance, Progress
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import ProgressColumn, Task
    from rich.text import Text

_SECONDS_BETWEEN_LINES = 5.0
_BAR = 20  # columns


def progress_for(*, quiet: bool) -> Progress:
    """Return the display that suits stderr."""
    if quiet:
        return Progress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class LineProgress(Progress):
    """A line at the start and at the end of each piece of work, and every few seconds between."""

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Follow one piece of work."""
        started = shown = time.monotonic()
        done = 0

        def advance(count: int = 1, *, note: str = "") -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown >= _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                so_far = done if unit != "B" else _counted(done, unit)
                _say(f"{label}: {so_far} of {_counted(total, unit)} {note}".rstrip())

        yield advance
        _say(f"{label}: {_counted(done, unit)} in {time.monotonic() - started:.1f} s")


class BarProgress(Progress):
    """A bar that disappears when its work is done, leaving one line."""

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Follow one piece of work."""
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        started = time.monotonic()
        console = Console(stderr=True)
        with RichProgress(*_columns(), console=console, transient=True) as display:
            bar = display.add_task(label, total=total, note="")
            yield lambda count=1, *, note="": display.update(bar, advance=count, note=note)
        _say(f"{label}: {_counted(total, unit)} in {time.monotonic() - started:.1f} s")


def _columns() -> Iterator[ProgressColumn]:
    """Lay a bar out: where the line is too narrow, words shrink and nothing else does."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    class Words(TextColumn):
        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    fixed = Column(no_wrap=True)
    yield Words("{task.description}", markup=False, table_column=Column())
    yield BarColumn(_BAR, table_column=fixed)
    yield TextColumn("{task.percentage:>3.0f}%", table_column=fixed)
    yield TimeRemainingColumn(table_column=fixed)
    yield Words("{task.fields[note]}", markup=False, table_column=Column())


def _counted(count: int, unit: str) -> str:
    return amount(count) if unit == "B" else f"{count}{unit and ' '}{unit}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
