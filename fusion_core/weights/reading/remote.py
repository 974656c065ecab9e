"""A repository's weights, described from their headers at once and downloaded when they are read.

Models that do not fit together are found before gigabytes are downloaded, and a dry run downloads
no weights.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.errors import CheckpointError
from fusion_core.weights.origin import Origin
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.format import parse_header
from fusion_core.weights.reading.untrusted_json import largest_header
from fusion_core.weights.source import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.reading.header import StoredTensor
    from fusion_core.weights.reading.location import Location

#: Bytes of a file that hold most headers.
_USUAL_HEADER = 2**17


class RemoteSource(WeightSource):
    """The safetensors files of a commit. `prepare` or the first `read` downloads them.

    Raises `CheckpointError` naming the file for a malformed header, `HubError` for failures of the
    hub.
    """

    def __init__(self, pinned: hub.Reference, files: Sequence[str]) -> None:
        self.pinned = pinned
        self._files = list(files)
        self._local: CheckpointSource | None = None
        self._lock = threading.Lock()
        self._wanted = hub.FileRequest(pinned, tuple(files))
        tensors: dict[str, StoredTensor] = {}
        for file in self._files:
            tensors |= _request_header(pinned, file)
        self.infos = {name: stored.info for name, stored in tensors.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor from the cache."""
        return self.local.read(name, start, stop)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Download the files, once."""
        del executor, name
        _ = self.local

    @property
    def local(self) -> CheckpointSource:
        """The files in the cache, downloaded on first use."""
        with self._lock:
            if self._local is None:
                directory = hub.download_paths(self.pinned, self._files)
                self._local = CheckpointSource(directory, name=str(self.pinned))
            return self._local

    def describe(self) -> str:
        """Return the repository at its commit."""
        return str(self.pinned)

    @property
    def origin(self) -> Origin:
        """The repository's files; looking at `files` downloads them."""
        with self._lock:
            stamps = {} if self._local is None else self._local.origin.stamps
        return Origin(files=_LazyIdentities(self), wanted=self._wanted, stamps=stamps)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _LazyIdentities(Mapping[str, Mapping[str, Any]]):
    """The identities of a source's files, which are downloaded on first use."""

    def __init__(self, source: RemoteSource) -> None:
        self._source = source

    def __getitem__(self, file: str) -> Mapping[str, Any]:
        identity = self._source.local.origin.files[file]
        sha256 = hub.cached_digest(self._source.pinned, file)
        return identity if sha256 is None else {**identity, "sha256": sha256}

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.local.origin.files)

    def __len__(self) -> int:
        return len(self._source.local.origin.files)


def open_checkpoint(location: Location) -> CheckpointSource | RemoteSource:
    """Open the safetensors files of a model, here or on the hub."""
    if location.pinned is not None and location.remote:
        return RemoteSource(location.pinned, location.remote)
    return CheckpointSource(location.path, name=location.name)


def _request_header(pinned: hub.Reference, file: str) -> dict[str, StoredTensor]:
    """Parse a file's header without downloading the rest."""
    label, size = f"{pinned}: {file}", hub.list_files(pinned).get(file)
    if size is None:
        raise CheckpointError(f"{label} does not exist, but the index names it")
    beginning = hub.read_beginning(pinned, file, min(_USUAL_HEADER, size)) if size else b""
    needed = 8 + struct.unpack("<Q", beginning[:8].ljust(8, b"\0"))[0]
    if len(beginning) < needed <= min(8 + largest_header(), size):
        beginning = hub.read_beginning(pinned, file, needed)
    stored, _ = parse_header(io.BytesIO(beginning), size, file, path=label)
    return stored
