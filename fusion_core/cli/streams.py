"""Guards for stdout and stderr: lost messages are ignored, lost results are an error."""

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

#: Escape sequences of libraries that style text and move bars, and other control characters.
_CONTROL = re.compile(
    r"(?P<style>\x1b\[[0-9;?]*[A-Za-z])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


@contextmanager
def guard_streams() -> Iterator[None]:
    """Replace closed streams (`2>&-`), escape control characters, and detect lost results."""
    _reopen_closed()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_Stream(sys.stdout, _refuse)))
        stack.enter_context(redirect_stderr(_Stream(sys.stderr, lambda _: None)))
        yield


def _reopen_closed() -> None:
    """Open closed descriptors 0, 1 and 2 on /dev/null, before another file takes their number."""
    for number, (name, mode) in enumerate(_MODES.items()):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - a number


class _Stream:
    """A stream that goes to /dev/null after a failed write, and calls `on_failure` each time."""

    def __init__(self, stream: TextIO, on_failure: Callable[[Exception], None]) -> None:
        self._stream = stream
        self._on_failure = on_failure
        self._failure: Exception | None = None
        if hasattr(stream, "reconfigure"):  # file names need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        return self._attempt(self._stream.write, self._escape(text)) or 0

    def _escape(self, text: str) -> str:
        """Escape control characters that the caller left in. A terminal keeps its styles."""
        is_styled = "FORCE_COLOR" in os.environ or self._stream.isatty()

        def escape(match: re.Match[str]) -> str:
            is_style = is_styled and match["style"] is not None
            return match[0] if is_style else match[0].encode("unicode_escape").decode()

        return _CONTROL.sub(escape, text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any other attribute of a stream
        return getattr(self._stream, name)

    def _attempt(self, operation: Callable[..., Any], *arguments: str) -> Any:  # noqa: ANN401 - its result
        try:
            return operation(*arguments)
        except (OSError, ValueError) as error:  # ValueError: a plugin has closed the stream
            self._failure = error
            with suppress(OSError, ValueError):  # buffered text is not tried again at exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        finally:
            if self._failure is not None:
                self._on_failure(self._failure)


def _refuse(error: Exception) -> None:
    """End the program because results are lost, silently if the reader closed the pipe."""
    if isinstance(error, BrokenPipeError):
        raise typer.Exit(1) from error
    reason = error.strerror if isinstance(error, OSError) else error
    raise DiskError(f"stdout cannot be written: {reason}") from error
