"""The memory of this process: its peak, and whether freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Bytes of freed memory that stay with the process for the next pieces.
_RETAINED_BYTES = 64 * 2**20


def peak_memory() -> int:
    """Return this process's peak of resident memory in bytes, without GPU memory."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts kilobytes
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Retain all freed memory, for work that needs the same amount again and again.

    By default glibc returns the activations of each pass to the system and faults them in again.
    """
    retain_freed_pieces()
    _mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _mallopt(_TRIM_THRESHOLD, _RETAINED_BYTES)


@lru_cache(maxsize=1)
def retain_freed_pieces() -> None:
    """Retain as much freed memory as pieces take: faulting it in takes as long as merging."""
    _mallopt(_MMAP_THRESHOLD, _RETAINED_BYTES // 2)
    _mallopt(_TRIM_THRESHOLD, _RETAINED_BYTES)


def _mallopt(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":  # other allocators lack it
        ctypes.CDLL(None).mallopt(parameter, value)
