"""Progress on stderr: a bar on a terminal and in a notebook, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from fusion_core.formatting import escape_control, format_bytes
from fusion_core.progress import Advance, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    #: shows a line and the finished share of the work, or None at the end
    Show = Callable[[str, float | None], None]

_BAR_COLUMNS = 20


def progress_for(*, quiet: bool = False) -> Progress:
    """Return the display that suits stderr or the running notebook."""
    if quiet:
        return Progress()
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return NotebookProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class LineProgress(Progress):
    """A line every few seconds, and one at the end of each stage of work."""

    seconds_between = 5.0

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Show the progress of one stage."""
        started = shown = time.monotonic()
        done = 0
        show = self._open(label)

        def advance(count: int = 1, *, note: str = "") -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown >= self.seconds_between:
                shown = time.monotonic()
                so_far = done if unit != "B" else _format_count(done, unit)
                line = f"{label}: {so_far} of {_format_count(total, unit)} {note}".rstrip()
                show(line, done / max(total, 1))

        yield advance
        show(f"{label}: {_format_count(done, unit)} in {time.monotonic() - started:.1f} s", None)

    def _open(self, label: str) -> Show:
        """Return a function that shows a line."""
        del label
        return lambda line, _share: _print_line(line)


class NotebookProgress(LineProgress):
    """A bar in a notebook's output, which becomes a line at the end of its stage."""

    seconds_between = 0.1

    def _open(self, label: str) -> Show:
        from IPython.display import display

        handle = display(_html_bar(label, 0.0), raw=True, display_id=True)
        return lambda line, share: handle.update(_html_bar(line, share), raw=True)


def _html_bar(line: str, share: float | None) -> dict[str, str]:
    """Return a line as display data of a notebook, with a bar unless the stage has ended."""
    if share is None:
        return {"text/plain": line}
    bar = f'<progress value="{share:.3f}" style="vertical-align:middle"></progress>'
    return {"text/plain": line, "text/html": f"{bar} {escape(line)}"}


class BarProgress(Progress):
    """A bar on a terminal, which is replaced by a line at the end of its stage."""

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Show the progress of one stage."""
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        started = time.monotonic()
        console = Console(stderr=True)
        with RichProgress(*_columns(), console=console, transient=True) as display:
            bar = display.add_task(escape_control(label), total=total, note="")
            yield lambda count=1, *, note="": display.update(
                bar, advance=count, note=escape_control(note)
            )
        _print_line(f"{label}: {_format_count(total, unit)} in {time.monotonic() - started:.1f} s")


def _columns() -> Iterator[ProgressColumn]:
    """Yield the columns of a bar. On a narrow terminal, only the texts shrink."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    class ShrinkingText(TextColumn):
        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    fixed = Column(no_wrap=True)
    yield ShrinkingText("{task.description}", markup=False, table_column=Column())
    yield BarColumn(_BAR_COLUMNS, table_column=fixed)
    yield TextColumn("{task.percentage:>3.0f}%", table_column=fixed)
    yield TimeRemainingColumn(table_column=fixed)
    yield ShrinkingText("{task.fields[note]}", markup=False, table_column=Column())


def _format_count(count: int, unit: str) -> str:
    return format_bytes(count) if unit == "B" else f"{count}{unit and ' '}{unit}"


def _print_line(line: str) -> None:
    print(escape_control(line), file=sys.stderr, flush=True)
