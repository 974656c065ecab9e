"""The part of a file that says what is in it, read in bounds.

A header comes from anywhere, and may claim any length: what is read of it is counted and hashed.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.containment import unreadable
from fusion_core.weights.reading.untrusted import HEADER_VARIABLE, largest_header

if TYPE_CHECKING:
    from pathlib import Path


class Header:
    """An open file as a stream, of which at most `largest` bytes may be read, all in all.

    By default as many as `FUSION_LARGEST_HEADER` says. A parser whose objects take many times the
    bytes that they are made of sets less. Raises `CheckpointError` for more, and for what the
    system refuses.
    """

    def __init__(self, descriptor: int, path: Path, largest: int | None = None) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._largest = largest_header() if largest is None else largest
        trusting = f"If you trust the file, set {HEADER_VARIABLE} to more bytes."
        self._hint = trusting if largest is None else None
        self._position = self._taken = 0
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read on: at most `size` bytes, or up to the end of the file."""
        left = max(self.size - self._position, 0)
        count = left if size < 0 else min(size, left)
        if self._taken + count > self._largest:
            raise CheckpointError(
                f"{self.path}: expected a header of at most {self._largest} bytes, got more",
                hint=self._hint,
            )
        try:
            content = os.pread(self._descriptor, count, self._position)
        except OSError as error:
            raise unreadable(self.path, error) from error
        self._position += len(content)
        self._taken += len(content)
        self._digest.update(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the file: from its beginning, from here, or from its end."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"byte {start + offset} is before the beginning of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the place in the file."""
        return self._position

    def digest(self) -> str:
        """Return the SHA-256 of all that was read, in the order in which it was read."""
        return self._digest.hexdigest()
