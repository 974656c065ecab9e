"""Memory that ran out, however it is reported: Python, torch and the driver each have a way."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import FusionError
from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In the messages of the RuntimeErrors by which torch says it.
_SAID = (
    "DefaultCPUAllocator:",
    "out of memory",
    "not enough memory",
    "Cannot allocate memory",
    "can't allocate memory",
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error says that there is no more memory, of this machine or of its GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


@contextmanager
def explained() -> Iterator[None]:
    """Report memory that ran out as a `FusionError`, with what was noted on the way."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: Exception) -> FusionError:
    lines = str(error).strip().splitlines()
    reason = f": {printable(lines[0])}" if lines else ""
    explained = FusionError(
        f"out of memory{reason}",
        hint="Use fewer workers (--workers) or smaller batches, or end what else needs memory.",
    )
    for note in getattr(error, "__notes__", ()):
        explained.add_note(note)
    return explained
