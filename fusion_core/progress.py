"""Progress reports of long work. The base class is silent; the command line draws bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Advance = Callable[..., None]


class Progress:
    """A silent progress display. A subclass that shows progress overrides `track`.

    with progress.track("evaluate", total=8) as advance:
        for task in tasks:
            ...
            advance(1, note=task.name)
    """

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Advance]:
        """Open one bar of `total` steps, measured in `unit` ("B" for bytes)."""
        del label, total, unit
        yield _silent


def _silent(_count: int = 1, *, note: str = "") -> None:
    del note


_ADVANCE: ContextVar[Advance] = ContextVar("advance", default=_silent)


@contextmanager
def show_notes_on(advance: Advance) -> Iterator[None]:
    """Send the texts of `note` to this bar inside the block.

    A silent bar receives none: an outer bar may show them.
    """
    if advance is _silent:
        yield
        return
    token = _ADVANCE.set(advance)
    try:
        yield
    finally:
        _ADVANCE.reset(token)


def note(text: str) -> None:
    """Show a text on the innermost bar, such as how far its current step is."""
    _ADVANCE.get()(0, note=text)
