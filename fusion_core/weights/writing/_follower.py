"""Follows a merge: hashes what was written, makes it durable, and records that it is.

Tensors are hashed once, while their bytes are still in memory.
Batches are synced and then journalled in the background, so that neither the merge nor the end of
the run waits for much.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.digest import bytes_digest
from fusion_core.weights.writing.disk import DataFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from fusion_core.weights.writing._journal import Journal
    from fusion_core.weights.writing._layout import Layout, Place

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
        self._error: BaseException | None = None
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
        self._hashes[name] = self._hasher.submit(place_digest, self._files[place.file], place)
        self._batch.append(place)
        self._batch_bytes += place.info.nbytes
        waited = time.monotonic() - self._last_batch
        if self._batch_bytes >= BATCH_BYTES or waited >= BATCH_SECONDS:
            self._flush()

    def complete(self) -> None:
        """Wait until everything is hashed, durable and recorded."""
        self._flush()
        self._syncer.shutdown()
        self._check()

    @property
    def tensor_digests(self) -> dict[str, str]:
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
            self._syncer.submit(self._make_durable, batch)

    def _make_durable(self, batch: list[Place]) -> None:
        """Sync, then record; nothing more is recorded once a sync has failed."""
        if self._error is not None:
            return
        try:
            for file in dict.fromkeys(place.file for place in batch):
                self._files[file].sync()
            fault_point("data synced")
            names = [place.info.name for place in batch]
            self._journal.add({name: self._hashes[name].result() for name in names})
        except BaseException as error:  # noqa: BLE001 - raised by `_check`, in the merge's thread
            self._error = error

    def _check(self) -> None:
        """Raise what went wrong in the background.

        The merge's thread never asks a future: an interrupt in the midst of that may leave the
        future's lock taken, and then the thread that is to complete it waits for ever.
        """
        if self._error is not None:
            raise self._error


def place_digest(file: DataFile, place: Place) -> str:
    """Hash a tensor's bytes as they lie in its file.

    It is opened anew: a network file system shows what another machine has written to those who
    open the file after that.
    """
    file = DataFile(file.path, flags=0)
    buffer = memoryview(bytearray(min(place.info.nbytes, _CHUNK)))
    return bytes_digest(file.chunks(place.offset, place.info.nbytes, buffer))
