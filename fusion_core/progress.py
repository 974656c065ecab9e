"""How long work tells how far it is; the base class is silent, the command line draws bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
