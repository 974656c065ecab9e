"""The header of an untrusted file: read within bounds, and checked for what it may claim."""

from __future__ import annotations

import gc
import hashlib
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.containment import unreadable_error
from fusion_core.weights.reading.untrusted_json import HEADER_VARIABLE, largest_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fusion_core.weights.source import TensorInfo

_LONGEST_NAME = 512
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 2**62


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file of the model; `offset` is its first byte."""

    file: str
    info: TensorInfo
    offset: int


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn the garbage collector off while many objects without cycles are made.

    For a header of 20,000 tensors it took two thirds of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_valid_name(name: str) -> bool:
    """Tell whether a name is printable, not empty and at most 512 bytes long."""
    # Surrogates are not printable, so a printable name can be encoded.
    return name.isprintable() and 0 < len(name.encode("utf-8")) <= _LONGEST_NAME


def is_valid_shape(shape: Sequence[int]) -> bool:
    """Tell whether a shape has at most 8 dimensions and fewer than 2^62 elements."""
    # `True` is an int in Python, but not in a file.
    if len(shape) > _MOST_DIMENSIONS or not {*map(type, shape)} <= {int}:
        return False
    # Zero-sized tensors may still declare dimensions whose product overflows.
    return min(shape, default=0) >= 0 and math.prod(filter(None, shape)) < _MOST_ELEMENTS


class Header:
    """An open file as a stream, of which at most `largest` bytes in total may be read.

    The default is `FUSION_LARGEST_HEADER`. A parser whose objects take many times the bytes of
    their text sets less. Raises `CheckpointError` for more bytes, and for errors of the system.
    """

    def __init__(self, descriptor: int, path: Path, largest: int | None = None) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._largest = largest_header() if largest is None else largest
        advice = f"If you trust the file, set {HEADER_VARIABLE} to more bytes."
        self._hint = advice if largest is None else None
        self._position = self._bytes_read = 0
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read on: at most `size` bytes, or up to the end of the file."""
        remaining = max(self.size - self._position, 0)
        count = remaining if size < 0 else min(size, remaining)
        if self._bytes_read + count > self._largest:
            raise CheckpointError(
                f"{self.path}: expected a header of at most {self._largest} bytes, got more",
                hint=self._hint,
            )
        try:
            content = os.pread(self._descriptor, count, self._position)
        except OSError as error:
            raise unreadable_error(self.path, error) from error
        self._position += len(content)
        self._bytes_read += len(content)
        self._digest.update(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, relative to the beginning, the current position or the end."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"byte {start + offset} is before the beginning of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position in the file."""
        return self._position

    def digest(self) -> str:
        """Return the SHA-256 of all bytes read so far, in the order of reading."""
        return self._digest.hexdigest()
