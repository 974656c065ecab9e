"""The record of what is finished: one JSON object a line, in a file that only grows.

The first line names the layout, each further one a tensor whose data is durable, with the digest
of its bytes; the last one says that the directory is about to get its name. A process that dies
while it appends leaves a torn line; that one and what follows it does not count, nor do they where
anything else is wrong with a line. A run that goes on writes the journal anew before it appends.
"""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.disk import DataFile, write_durably, writing
from fusion_core.weights.writing.ours import read_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

#: Bytes that are read: of 300,000 tensors. Those that are recorded behind them are done again.
_LARGEST = 32 * 2**20
#: Bytes of a line: a name has at most 512, which JSON may escape.
_LONGEST = 2**14
_DIGEST = re.compile("[0-9a-f]{64}")


class Journal:
    """A journal on disk, read when it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: DataFile | None = None
        self._end = 0
        self.layout: str | None = None
        #: digests by name of the tensors that are finished
        self.tensors: dict[str, str] = {}
        #: the number (inode) of the directory that was about to get its name
        self.committing: int | None = None
        self._read()

    def begin(self, layout: str, tensors: Mapping[str, str]) -> None:
        """Start anew, in one step: for a layout, with what is known to be finished."""
        self.layout, self.tensors, self.committing = layout, dict(tensors), None
        data = _lines([{"layout": layout}, *_records(tensors)])
        write_durably(self._path, data)
        self._file, self._end = DataFile(self._path), len(data)
        fault_point("journal begun")

    def add(self, tensors: Mapping[str, str]) -> None:
        """Record finished tensors; their data must be durable."""
        self.tensors |= tensors
        self._append(_records(tensors))

    def commit(self, number: int) -> None:
        """Record that the directory of this number is complete and about to get its name."""
        self.committing = number
        self._append([{"commit": number}])

    def close(self) -> None:
        """Close the file; the journal can be begun again."""
        self._file = None

    def _append(self, records: Iterable[Mapping[str, Any]]) -> None:
        data = _lines(records)
        assert self._file is not None, "begin comes first"  # noqa: S101
        self._file.write(memoryview(data), self._end)
        fault_point("journal written")
        self._file.sync()
        self._end += len(data)
        fault_point("journal synced")

    def _read(self) -> None:
        with writing(self._path):
            content = read_ours(self._path, _LARGEST) or b""
        stream = BytesIO(content)
        while (line := stream.readline(_LONGEST)).endswith(b"\n") and self._take(line):
            pass

    def _take(self, line: bytes) -> bool:
        """Learn what a line says; False if it is none of ours."""
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            return False
        match record:
            case {"layout": str(layout)}:
                self.layout = layout
            case {"commit": int(number)}:
                self.committing = number
            case {"name": str(name), "digest": str(digest)} if _DIGEST.fullmatch(digest):
                self.tensors[name] = digest
            case _:
                return False
        return True


def _records(tensors: Mapping[str, str]) -> Iterator[dict[str, str]]:
    yield from ({"name": name, "digest": digest} for name, digest in tensors.items())


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
