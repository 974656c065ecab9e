"""Follows a merge: hashes what was written, makes it durable, and records that it is.

Tensors are hashed once, while their bytes are still in memory: hashing takes as long as merging.
Batches are synced and then journalled in the background, so that neither the merge nor the end of
the run waits for much.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from fusion_core.weights.fault import fault_point
from fusion_core.weights.format import DTYPE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.weights.disk import DataFile
    from fusion_core.weights.format import TensorInfo
    from fusion_core.weights.journal import Journal
    from fusion_core.weights.layout import Layout, Place

#: A batch is synced when it holds so many bytes, or when the last one was so many seconds ago.
BATCH_BYTES, BATCH_SECONDS = 64 * 2**20, 2.0
_CHUNK = 2**20


class Follower:
    """What goes on behind a merge; `finished` is called from one thread."""

    def __init__(self, layout: Layout, files: Mapping[str, DataFile], journal: Journal) -> None:
        self._files = files
        self._journal = journal
        self._places = layout.places
        self._hashes: dict[str, Future[str]] = {}
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="fusion-hash")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="fusion-sync")
        self._pending: deque[Future[None]] = deque()
        self._failed = False
        self._batch: list[Place] = []
        self._batch_bytes = 0
        self._last_batch = time.monotonic()

    def finished(self, name: str) -> None:
        """Learn that all of a tensor is written.

        Raises `DiskError` if anything before could not be made durable: what was not is lost, and
        syncing it again would not tell.
        """
        self._check()
        place = self._places[name]
        self._hashes[name] = self._hasher.submit(tensor_sha256, self._files[place.file], place)
        self._batch.append(place)
        self._batch_bytes += place.info.nbytes
        waited = time.monotonic() - self._last_batch
        if self._batch_bytes >= BATCH_BYTES or waited >= BATCH_SECONDS:
            self._flush()

    def complete(self) -> None:
        """Wait until everything is hashed, durable and recorded."""
        self._flush()
        while self._pending:
            self._pending.popleft().result()

    @property
    def tensors_sha256(self) -> dict[str, str]:
        """The digest of each tensor's bytes; call `complete` before."""
        return self._journal.tensors

    def close(self, *, record: bool) -> None:
        """Stop; before that, if asked to, make durable and record what is finished."""
        if record:
            self._flush()
        self._syncer.shutdown(cancel_futures=not record)
        self._hasher.shutdown(cancel_futures=True)  # after the syncer, which waits for hashes

    def _flush(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._last_batch = time.monotonic()
        if batch:
            self._pending.append(self._syncer.submit(self._make_durable, batch))

    def _make_durable(self, batch: list[Place]) -> None:
        """Sync, then record; nothing more is recorded once a sync has failed."""
        if self._failed:
            return
        try:
            for file in dict.fromkeys(place.file for place in batch):
                self._files[file].sync()
            fault_point("data synced")
            names = [place.info.name for place in batch]
            self._journal.add({name: self._hashes[name].result() for name in names})
        except BaseException:
            self._failed = True
            raise

    def _check(self) -> None:
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()


def tensor_sha256(file: DataFile, place: Place) -> str:
    """Hash a tensor's bytes as they lie in its file."""
    digest = hashlib.sha256()
    for chunk in _chunks(file, place):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: DataFile, place: Place) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(place.info.nbytes, _CHUNK)))
    return file.chunks(place.offset, place.info.nbytes, buffer)


def tensors_digest(tensors: Mapping[str, tuple[TensorInfo, str]]) -> str:
    """Return one SHA-256 for all tensors: of a line each, in order, whatever file each lies in.

    A line is `name dtype shape sha256`, e.g. `head.bias F32 [10] 9f86…`, and ends with a newline.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        info, of_tensor = tensors[name]
        shape = ",".join(map(str, info.shape))
        digest.update(f"{name} {DTYPE_NAMES[info.dtype]} [{shape}] {of_tensor}\n".encode())
    return digest.hexdigest()
