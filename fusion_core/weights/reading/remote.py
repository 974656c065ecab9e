"""A repository's weights, described from their headers at once and downloaded when they are read.

So models that do not fit together are found out before gigabytes are on their way, and a dry run
downloads none of them.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.format import Entry, parse_header
from fusion_core.weights.reading.untrusted import largest_header
from fusion_core.weights.source import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    import torch

_USUAL_HEADER = 2**17


class RemoteSource(WeightSource):
    """The safetensors files of a commit; `prepare` or the first `read` downloads them.

    Raises `CheckpointError` naming the file for a header that is malformed, `HubError` for what the
    hub refuses.
    """

    def __init__(self, pinned: hub.Reference, files: Sequence[str]) -> None:
        self._pinned = pinned
        self._files = list(files)
        self._local: CheckpointSource | None = None
        self._lock = threading.Lock()
        entries: dict[str, Entry] = {}
        for file in self._files:
            entries |= _header(pinned, file)
        self.infos = {name: entry.info for name, entry in entries.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor from the cache."""
        return self.local.read(name, start, stop)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Download what is read later, once."""
        del executor, name
        _ = self.local

    def downloads(self) -> Iterator[hub.Wanted]:
        """Yield the files that this reads."""
        yield hub.Wanted(self._pinned, tuple(self._files))

    @property
    def local(self) -> CheckpointSource:
        """The downloaded files."""
        with self._lock:
            if self._local is None:
                directory = hub.files(self._pinned, self._files)
                self._local = CheckpointSource(directory, name=str(self._pinned))
            return self._local

    def describe(self) -> str:
        """Return the repository at its commit."""
        return str(self._pinned)

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Identify the files."""
        return self.local.files()

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` if the downloaded files changed since they were opened."""
        with self._lock:
            local = self._local
        if local is not None:
            local.check_unchanged()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _header(pinned: hub.Reference, file: str) -> dict[str, Entry]:
    """Parse a file's header as if the file were here."""
    label, size = f"{pinned}: {file}", hub.listing(pinned).get(file)
    if size is None:
        raise CheckpointError(f"{label}: the index names it, and it is not there")
    beginning = hub.beginning(pinned, file, min(_USUAL_HEADER, size)) if size else b""
    needed = 8 + struct.unpack("<Q", beginning[:8].ljust(8, b"\0"))[0]
    if len(beginning) < needed <= min(8 + largest_header(), size):
        beginning = hub.beginning(pinned, file, needed)
    with tempfile.TemporaryFile() as stream:  # sparse: it takes no more room than the header
        stream.write(beginning)
        stream.truncate(size)
        entries, _ = parse_header(stream.fileno(), path=label)
    return entries
