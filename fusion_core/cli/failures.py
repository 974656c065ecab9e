"""How a program that did not do what was asked ends: what it says, and its exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from typing import TYPE_CHECKING

import typer

from fusion_core.errors import DiskError, FusionError, Terminated
from fusion_core.machine.attribution import plugin_behind
from fusion_core.machine.installed import cause_of
from fusion_core.shown import printable, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The environment's word for --traceback.
TRACEBACK_VARIABLE = "FUSION_TRACEBACK"


def explain(error: BaseException) -> int:
    """Say on stderr what ended the program and what became of the work; returns the exit code."""
    if _wants_traceback():
        told = "".join(traceback.format_exception(error))
        print(printable(without_secrets(told)), file=sys.stderr)
    code, lines = _told(error)
    for line in (*lines, *getattr(error, "__notes__", ())):
        print(printable(without_secrets(line)), file=sys.stderr)
    return code


def _wants_traceback() -> bool:
    return "--traceback" in sys.argv or os.environ.get(TRACEBACK_VARIABLE, "0") not in {"", "0"}


def _told(error: BaseException) -> tuple[int, list[str]]:
    match error:
        case FusionError():
            return error.exit_code, [f"error: {error.message}", *filter(None, [error.hint])]
        case KeyboardInterrupt():
            return 143 if isinstance(error, Terminated) else 130, [*_interrupted(error)]
        case typer.Exit():
            return error.exit_code, []
        case MemoryError():
            return 1, ["error: out of memory", "See what a run needs with fuse check."]
        case OSError(filename=str(), strerror=str()) if plugin_behind(error) is None:
            return DiskError.exit_code, [f"error: {error.filename}: {error.strerror}"]
        case _:
            return 1, [*_bug(error)]


def _interrupted(error: KeyboardInterrupt) -> Iterator[str]:
    word = "terminated" if isinstance(error, Terminated) else "interrupted"
    if isinstance(error.__context__, KeyboardInterrupt):
        yield f"{word} while stopping: fuse clean shows what is left beside the output"
    elif hasattr(error, "__notes__"):
        yield word
    else:
        yield f"{word}: nothing was written or kept"


def _bug(error: BaseException) -> Iterator[str]:
    yield f"error: a bug in {plugin_behind(error) or 'fusion-core'}: {cause_of(error)}"
    command = shlex.join(["fuse", "--traceback", *sys.argv[1:]])
    yield f"Please report it, with what this shows: {command}"
