"""How long work tells how far it is; the base class is silent, the command line draws bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Advance = Callable[..., None]


class Progress:
    """A silent progress display; subclasses show something.

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
def noting(advance: Advance) -> Iterator[None]:
    """Show on this bar what is said by `note` as long as this is open; a silent bar shows none."""
    if advance is _silent:  # an outer one may show it
        yield
        return
    token = _ADVANCE.set(advance)
    try:
        yield
    finally:
        _ADVANCE.reset(token)


def note(text: str) -> None:
    """Say how far the step is that the innermost bar waits for."""
    _ADVANCE.get()(0, note=text)
