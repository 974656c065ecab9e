"""Dask's log messages during a run, kept for the run's errors and not printed above them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger("fusion_dask")
#: The loggers of Dask, and of the libraries through which it reports broken connections.
_NAMES = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")
_LONGEST = 300


class _Diversion(logging.Handler):
    """Remembers the last error, and passes all messages to the logger `fusion_dask` as DEBUG."""

    def __init__(self) -> None:
        super().__init__()
        self.error: str | None = None
        self.users = 0
        self.before: dict[str, tuple[list[logging.Handler], bool]] = {}
        self.guard = Lock()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.ERROR:
            self.error = " ".join(message.split())[:_LONGEST]
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
        self.error = None


_DIVERSION = _Diversion()


@contextmanager
def divert_logs() -> Iterator[None]:
    """Keep Dask's log messages off the terminal until the last such context ends."""
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


def last_error() -> str | None:
    """Return the last error that Dask logged, in one line."""
    return _DIVERSION.error
