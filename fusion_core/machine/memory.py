"""How much memory this process takes, and what becomes of memory that it frees."""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: mallopt(3)'s parameters, and the bytes of freed memory that are kept for the next pieces.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 64 * 2**20


def peak_memory() -> int:
    """Return the most that this process has taken so far, in bytes, a GPU's memory left out."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts kilobytes
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep what is freed for what asks next: for work that needs the same memory again and again.

    By default glibc gives a pass's activations back to the system and faults them in again.
    """
    keep_freed_pieces()
    _mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _mallopt(_TRIM_THRESHOLD, _KEPT)


@lru_cache(maxsize=1)
def keep_freed_pieces() -> None:
    """Keep as much of what is freed as pieces take; faulting it in takes as long as merging."""
    _mallopt(_MMAP_THRESHOLD, _KEPT // 2)
    _mallopt(_TRIM_THRESHOLD, _KEPT)


def _mallopt(parameter: int, value: int) -> None:
    """Set what mallopt(3) documents; where the allocator is not glibc's, this does nothing."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(parameter, value)
