"""Stdout and stderr that may be closed or full: messages get lost, results are an error."""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO

import typer

from fusion_core.errors import DiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What libraries style text and move bars with, and everything else that a terminal obeys.
_OBEYED = re.compile(
    r"(?P<style>\x1b\[[0-9;?]*[A-Za-z])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


@contextmanager
def guard_streams() -> Iterator[None]:
    """Open what is closed (`2>&-`) on nothing, and tell failures of stdout from all others."""
    _reopen_closed()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_Stream(sys.stdout, _refuse)))
        stack.enter_context(redirect_stderr(_Stream(sys.stderr, _ignore)))
        yield


def _reopen_closed() -> None:
    """Give 0, 1 and 2 back their meaning before a file that is opened takes a free number."""
    for number, (name, mode) in enumerate(_MODES.items()):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - a number


class _Stream:
    """A stream that leads nowhere once it could not be written, which `failed` hears each time."""

    def __init__(self, stream: TextIO, failed: Callable[[Exception], None]) -> None:
        self._stream = stream
        self._failed = failed
        self._lost: Exception | None = None
        if hasattr(stream, "reconfigure"):  # names of files need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        return self._tried(self._stream.write, self._escaped(text)) or 0

    def _escaped(self, text: str) -> str:
        """Escape what a terminal obeys, whoever forgot to; a terminal gets its styles."""
        is_styled = "FORCE_COLOR" in os.environ or self._stream.isatty()

        def escape(found: re.Match[str]) -> str:
            is_style = is_styled and found["style"] is not None
            return found[0] if is_style else found[0].encode("unicode_escape").decode()

        return _OBEYED.sub(escape, text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else a stream has
        return getattr(self._stream, name)

    def _tried(self, do: Callable[..., Any], *arguments: str) -> Any:  # noqa: ANN401 - what it returns
        try:
            return do(*arguments)
        except (OSError, ValueError) as error:  # or a plugin has closed it
            self._lost = error
            with suppress(OSError, ValueError):  # what is left is not tried again at the end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        finally:
            if self._lost is not None:
                self._failed(self._lost)


def _ignore(_: Exception) -> None: ...


def _refuse(error: Exception) -> None:
    """End the program where results are lost; quietly where whoever reads them has enough."""
    if isinstance(error, BrokenPipeError):
        raise typer.Exit(1) from error
    reason = error.strerror if isinstance(error, OSError) else error
    raise DiskError(f"stdout cannot be written: {reason}") from error
