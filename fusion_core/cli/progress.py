"""Progress on stderr: a bar on a terminal and in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from fusion_core.progress import Advance, Progress
from fusion_core.shown import amount, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    #: shows a line, and the share of the work that is done; None once all is
    Show = Callable[[str, float | None], None]

_BAR = 20  # columns


def progress_for(*, quiet: bool = False) -> Progress:
    """Return the display that suits stderr, or the notebook that this runs in."""
    if quiet:
        return Progress()
    if _is_notebook():
        return NotebookProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def _is_notebook() -> bool:
    """Tell whether a kernel of Jupyter's runs this, which shows more than text."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class LineProgress(Progress):
    """A line every few seconds, and one at the end of each piece of work."""

    seconds_between = 5.0

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Follow one piece of work."""
        started = shown = time.monotonic()
        done = 0
        show = self._open(label)

        def advance(count: int = 1, *, note: str = "") -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown >= self.seconds_between:
                shown = time.monotonic()
                so_far = done if unit != "B" else _counted(done, unit)
                line = f"{label}: {so_far} of {_counted(total, unit)} {note}".rstrip()
                show(line, done / max(total, 1))

        yield advance
        show(f"{label}: {_counted(done, unit)} in {time.monotonic() - started:.1f} s", None)

    def _open(self, label: str) -> Show:
        """Return what shows how far a piece of work is."""
        del label
        return lambda line, _share: _say(line)


class NotebookProgress(LineProgress):
    """A bar in the output of a notebook's cell, which becomes a line when its work is done."""

    seconds_between = 0.1

    def _open(self, label: str) -> Show:
        from IPython.display import display

        shown = display(_as_bar(label, 0.0), raw=True, display_id=True)
        return lambda line, share: shown.update(_as_bar(line, share), raw=True)


def _as_bar(line: str, share: float | None) -> dict[str, str]:
    """Return a line as a notebook takes it, with a bar for the share that is done."""
    if share is None:
        return {"text/plain": line}
    bar = f'<progress value="{share:.3f}" style="vertical-align:middle"></progress>'
    return {"text/plain": line, "text/html": f"{bar} {escape(line)}"}


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
            bar = display.add_task(printable(label), total=total, note="")
            yield lambda count=1, *, note="": display.update(
                bar, advance=count, note=printable(note)
            )
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
    print(printable(line), file=sys.stderr, flush=True)
