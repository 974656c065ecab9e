"""What Dask logs while a run uses it: kept for errors, and not printed above them."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger("fusion_dask")
#: The loggers of Dask, and of the libraries that it prints through when a connection breaks.
_NAMES = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")
_MOST = 20


class _Diversion(logging.Handler):
    """Keeps the last warnings, and hands everything to the logger `fusion_dask` at DEBUG level."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: deque[str] = deque(maxlen=_MOST)
        self.users = 0
        self.before: dict[str, tuple[list[logging.Handler], bool]] = {}
        self.guard = Lock()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.warnings.append(" ".join(message.split()))
        _LOG.debug("%s: %s", record.name, message, exc_info=record.exc_info)

    def begin(self) -> None:
        for name in _NAMES:
            logger = logging.getLogger(name)
            self.before[name] = (logger.handlers, logger.propagate)
            logger.handlers, logger.propagate = [self], False

    def end(self) -> None:
        for name, (handlers, propagate) in self.before.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = handlers, propagate
        self.before.clear()
        self.warnings.clear()


_DIVERSION = _Diversion()


@contextmanager
def diverted() -> Iterator[None]:
    """Keep what Dask logs from the terminal; the last context to end prints again as before."""
    with _DIVERSION.guard:
        if not _DIVERSION.users:
            _DIVERSION.begin()
        _DIVERSION.users += 1
    try:
        yield
    finally:
        with _DIVERSION.guard:
            _DIVERSION.users -= 1
            if not _DIVERSION.users:
                _DIVERSION.end()


def last_warning() -> str | None:
    """Return what Dask warned of last, in one line."""
    return _DIVERSION.warnings[-1] if _DIVERSION.warnings else None
