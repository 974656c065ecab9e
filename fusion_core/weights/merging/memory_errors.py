"""Recognise and report that memory ran out; Python, torch and the driver each raise their own."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import FusionError
from fusion_core.formatting import escape_control

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Parts of the messages of the RuntimeErrors that torch raises when memory runs out.
_MESSAGES = (
    "DefaultCPUAllocator:",
    "out of memory",
    "not enough memory",
    "Cannot allocate memory",
    "can't allocate memory",
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error means that this machine or its GPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


@contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Report memory that ran out as a `FusionError` that keeps the notes of the original error."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        reason = f": {escape_control(lines[0])}" if lines else ""
        shortage = FusionError(
            f"out of memory{reason}",
            hint="Use fewer workers (--workers) or smaller batches, or free memory that other "
            "programs use.",
        )
        for note in getattr(error, "__notes__", ()):
            shortage.add_note(note)
        raise shortage from error
