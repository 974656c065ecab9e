"""Follows a merge: hashes what was written, makes it durable, and records that it is.

Tensors are hashed in the order of the files, each byte read once, while it is still in memory, for
two digests: its file's and its tensor's. Batches are synced and then journalled in the background,
so that neither the merge nor the end of the run waits for much.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from fusion_core.weights.fault import fault_point
from fusion_core.weights.format import DTYPE_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        self._file_digests = {each.file: hashlib.sha256(each.header) for each in layout.shards}
        self._hashes: dict[str, Future[str]] = {}
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="fusion-hash")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="fusion-sync")
        self._syncs: list[Future[None]] = []
        self._failed = False
        self._buffer = memoryview(bytearray(_CHUNK))
        self._rest = iter(layout.places.values())
        self._next = next(self._rest, None)
        self._ready = set(journal.tensors)
        self._batch: list[Place] = []
        self._batch_bytes = 0
        self._last_batch = time.monotonic()

    def finished(self, name: str) -> None:
        """Learn that all of a tensor is written.

        Raises `DiskError` if anything before could not be made durable: what was not is lost, and
        syncing it again would not tell.
        """
        self._check()
        self._ready.add(name)
        self._advance()
        waited = time.monotonic() - self._last_batch
        if self._batch_bytes >= BATCH_BYTES or waited >= BATCH_SECONDS:
            self._flush()

    def complete(self) -> None:
        """Wait until everything is hashed, durable and recorded."""
        self._advance()
        self._flush()
        for each in self._syncs:
            each.result()
        for future in self._hashes.values():
            future.result()

    @property
    def files_sha256(self) -> dict[str, str]:
        """The digest of each file, its header included; call `complete` before."""
        return {file: digest.hexdigest() for file, digest in self._file_digests.items()}

    @property
    def tensors_sha256(self) -> dict[str, str]:
        """The digest of each tensor's bytes; call `complete` before."""
        return {name: future.result() for name, future in self._hashes.items()}

    def close(self) -> None:
        """Stop, and wait for what is under way."""
        for each in (self._syncer, self._hasher):  # a sync under way waits for hashes
            each.shutdown(cancel_futures=True)

    def _advance(self) -> None:
        """Pass on to the hasher what is finished and next in the order of the files."""
        while self._next is not None and self._next.info.name in self._ready:
            place = self._next
            self._hashes[place.info.name] = self._hasher.submit(self._hash, place)
            if place.info.name not in self._journal.tensors:
                self._batch.append(place)
                self._batch_bytes += place.info.nbytes
            self._next = next(self._rest, None)

    def _hash(self, place: Place) -> str:
        of_file, of_tensor = self._file_digests[place.file], hashlib.sha256()
        file = self._files[place.file]
        for chunk in file.chunks(place.offset, place.info.nbytes, self._buffer):
            of_tensor.update(chunk)
            of_file.update(chunk)
        return of_tensor.hexdigest()

    def _flush(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._last_batch = time.monotonic()
        if batch:
            self._syncs.append(self._syncer.submit(self._make_durable, batch))

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
        while self._syncs and self._syncs[0].done():
            self._syncs.pop(0).result()


def tensor_sha256(file: DataFile, place: Place) -> str:
    """Hash a tensor's bytes as they lie in its file."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(place.info.nbytes, _CHUNK)))
    for chunk in file.chunks(place.offset, place.info.nbytes, buffer):
        digest.update(chunk)
    return digest.hexdigest()


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
