"""The end of a program that failed: its messages and its exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from typing import TYPE_CHECKING

import typer

from fusion_core.errors import DiskError, FusionError, Terminated
from fusion_core.formatting import escape_control, redact_secrets
from fusion_core.machine.attribution import find_responsible_plugin
from fusion_core.machine.distributions import summarize_error

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The environment variable that does the same as --traceback.
TRACEBACK_VARIABLE = "FUSION_TRACEBACK"


def report_failure(error: BaseException) -> int:
    """Print why the program ended and what became of its work. Returns the exit code."""
    if "--traceback" in sys.argv or os.environ.get(TRACEBACK_VARIABLE, "0") not in {"", "0"}:
        _print_error("".join(traceback.format_exception(error)))
    code, lines = _explain(error)
    for line in (*lines, *getattr(error, "__notes__", ())):
        _print_error(line)
    return code


def _print_error(text: str) -> None:
    print(escape_control(redact_secrets(text)), file=sys.stderr)


def _explain(error: BaseException) -> tuple[int, list[str]]:
    match error:
        case FusionError():
            return error.exit_code, [f"error: {error.message}", *filter(None, [error.hint])]
        case KeyboardInterrupt():
            return 143 if isinstance(error, Terminated) else 130, [_explain_interrupt(error)]
        case typer.Exit():
            return error.exit_code, []
        case MemoryError():
            return 1, ["error: out of memory", "fuse check estimates the memory that a run needs."]
        case OSError(filename=str(), strerror=str()) if find_responsible_plugin(error) is None:
            return DiskError.exit_code, [f"error: {error.filename}: {error.strerror}"]
        case _:
            return 1, [*_explain_bug(error)]


def _explain_interrupt(error: KeyboardInterrupt) -> str:
    word = "terminated" if isinstance(error, Terminated) else "interrupted"
    if isinstance(error.__context__, KeyboardInterrupt):
        return f"{word} while stopping: fuse clean shows what is left next to the output"
    return word if hasattr(error, "__notes__") else f"{word}: this command has written nothing"


def _explain_bug(error: BaseException) -> Iterator[str]:
    plugin = find_responsible_plugin(error) or "fusion-core"
    yield f"error: a bug in {plugin}: {summarize_error(error)}"
    command = shlex.join(["fuse", "--traceback", *sys.argv[1:]])
    yield f"Please report it with the output of: {command}"
