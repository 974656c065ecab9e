"""The journal of finished tensors, and the background thread that keeps it.

The journal is a file of one JSON object per line that only grows. The first line names the layout.
Each further line names a durable tensor and the digest of its bytes. The last line announces that
the directory is about to be renamed to the output. Reading stops at the first line that is torn or
invalid. A resumed run rewrites the journal before it appends.
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.disk import DataFile, report_disk_errors, write_durably
from fusion_core.weights.writing.ownership import read_own_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from fusion_core.weights.source import TensorInfo
    from fusion_core.weights.writing._shards import Shards

#: Bytes to read, enough for 300,000 tensors. A resumed run writes the tensors beyond that again.
_LARGEST = 32 * 2**20
#: Bytes per line: a name has at most 512 bytes, which JSON may escape.
_LONGEST_LINE = 2**14
_DIGEST = re.compile("[0-9a-f]{64}")

#: A batch is hashed and synced when it reaches this size, or this long after the previous batch.
BATCH_BYTES, BATCH_SECONDS = 64 * 2**20, 2.0


class Journal:
    """A journal on disk, which the constructor reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: DataFile | None = None
        self._end = 0
        self.layout: str | None = None
        #: the digests of the finished tensors, by name
        self.tensors: dict[str, str] = {}
        #: the inode of the directory that was about to be renamed to the output
        self.committing: int | None = None
        with report_disk_errors(path):
            content = read_own_file(path, _LARGEST) or b""
        stream = BytesIO(content)
        while (line := stream.readline(_LONGEST_LINE)).endswith(b"\n") and self._apply(line):
            pass

    def _apply(self, line: bytes) -> bool:
        """Take over a line's content. Return False for an invalid line."""
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            return False
        match record:
            case {"layout": str(layout)}:
                self.layout = layout
            case {"commit": int(inode)}:
                self.committing = inode
            case {"name": str(name), "digest": str(digest)} if _DIGEST.fullmatch(digest):
                self.tensors[name] = digest
            case _:
                return False
        return True

    def begin(self, layout: str, tensors: Mapping[str, str]) -> None:
        """Replace the journal in one step by one for a layout and its finished tensors."""
        self.layout, self.tensors, self.committing = layout, dict(tensors), None
        data = _encode({"layout": layout}) + _encode_tensors(tensors)
        write_durably(self._path, data)
        self._file, self._end = DataFile(self._path), len(data)
        fault_point("journal begun")

    def add(self, tensors: Mapping[str, str]) -> None:
        """Record finished tensors, whose data must be durable."""
        self.tensors |= tensors
        self._append(_encode_tensors(tensors))

    def commit(self, inode: int) -> None:
        """Record that a directory is complete and about to be renamed to the output."""
        self.committing = inode
        self._append(_encode({"commit": inode}))

    def _append(self, data: bytes) -> None:
        assert self._file is not None, "call begin first"  # noqa: S101
        self._file.write(memoryview(data), self._end)
        fault_point("journal written")
        self._file.sync()
        self._end += len(data)
        fault_point("journal synced")

    def close(self) -> None:
        """Close the file. `begin` opens it again."""
        self._file = None


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _encode_tensors(tensors: Mapping[str, str]) -> bytes:
    return b"".join(_encode({"name": name, "digest": digest}) for name, digest in tensors.items())


class Recorder:
    """Hashes, syncs and journals finished tensors in the background of a merge.

    Each tensor is hashed once, while its bytes are still in the page cache. The merge does not wait
    for the disk. Only one thread may call a recorder.
    """

    def __init__(self, shards: Shards, journal: Journal) -> None:
        self._shards = shards
        self._journal = journal
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="fusion-hash")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="fusion-sync")
        self._error: BaseException | None = None
        self._batch: list[TensorInfo] = []
        self._batch_bytes = 0
        self._last_batch = time.monotonic()

    def add(self, info: TensorInfo) -> None:
        """Schedule a tensor whose data has been written.

        Raises `DiskError` if an earlier sync failed. The kernel reports a failed sync only once, so
        a repeated sync would succeed without the lost data.
        """
        self._raise_error()
        self._batch.append(info)
        self._batch_bytes += info.nbytes
        waited = time.monotonic() - self._last_batch
        if self._batch_bytes >= BATCH_BYTES or waited >= BATCH_SECONDS:
            self._flush()

    def complete(self) -> None:
        """Wait until every tensor is hashed, durable and recorded."""
        self._flush()
        self._syncer.shutdown()
        self._raise_error()

    def close(self, *, record: bool) -> None:
        """Stop the background threads. With `record`, sync and record finished tensors first."""
        if record:
            self._flush()
        self._syncer.shutdown(cancel_futures=not record)
        self._hasher.shutdown(cancel_futures=True)  # after the syncer, which waits for hashes

    def _hash(self, tensors: Sequence[TensorInfo]) -> dict[str, str]:
        return {info.name: self._shards.digest(info.name) for info in tensors}

    def _flush(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._last_batch = time.monotonic()
        if batch:
            hashes = self._hasher.submit(self._hash, batch)
            self._syncer.submit(self._sync_and_record, batch, hashes)

    def _sync_and_record(self, batch: Sequence[TensorInfo], hashes: Future[dict[str, str]]) -> None:
        if self._error is not None:  # record nothing after a failed sync
            return
        try:
            self._shards.sync(batch)
            fault_point("data synced")
            self._journal.add(hashes.result())
        except BaseException as error:  # noqa: BLE001 - `_raise_error` raises it in the merge's thread
            self._error = error

    def _raise_error(self) -> None:
        """Raise an error of the background threads.

        The merge's thread must not wait on a future. An interrupt during the wait could leave the
        future's lock taken, and the thread that completes the future would then hang.
        """
        if self._error is not None:
            raise self._error
