"""A checkpoint on disk as a `WeightSource`: a safetensors file, or a directory of them.

Files that change while they are read are an error, found at the latest by `check_unchanged`. They
are read with `pread`: a memory map kills the process with SIGBUS when a file is truncated
under it, and counts the page cache as this process's memory.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError, IntegrityError
from fusion_core.weights.reading._foreign import CONVERT, kind_of, no_model
from fusion_core.weights.reading.containment import open_member, open_named, reading, unreadable
from fusion_core.weights.reading.format import LARGEST_INDEX, Entry, parse_header, parse_index
from fusion_core.weights.source import WeightSource, memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DIFFERS = "it is not as it was when the run began"
#: What follows of a file's identity is the same wherever it is seen; devices and inodes are not.
_OF_ONE_MACHINE = 2


class CheckpointSource(WeightSource):
    """The tensors of a safetensors file, or of a directory with one file or an index of several.

    Only headers are read at construction. Raises `CheckpointError` naming the file for anything
    missing, truncated, malformed or outside the directory (`containment.py`), and
    for a directory with both one file and an index that leads elsewhere: loaders differ in which
    they take. `name` is what to call it, where that is not the path.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        self.path = Path(path)
        self._name = name or str(path)
        self._open_all()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor from its file."""
        file = self._homes[name]
        entry = self._entries[file][name]
        values = torch.empty(stop - start, dtype=entry.info.dtype)
        view, offset = memory_of(values), entry.offset + start * values.itemsize
        while view:
            try:
                count = os.preadv(self._descriptors[file], [view], offset)
            except OSError as error:
                raise unreadable(self._file_path(file), error) from error
            if count == 0:
                raise _changed(self._file_path(file), f"ends inside tensor {name!r}")
            view, offset = view[count:], offset + count
        return values

    def describe(self) -> str:
        """Return the path, or the name given at construction."""
        return self._name

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` naming a file that is another one, or not as it was when opened.

        A file is known by device, inode, size, and the times when its content and it were changed.
        """
        for file, identity in self._identities.items():
            path = self._file_path(file)
            try:
                now = _identity(path.stat())
            except OSError as error:
                raise _changed(path, error.strerror or "it is gone") from error
            if now != identity:
                raise _changed(path, _DIFFERS)

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Identify the input files: size, time of change, hash of the header.

        The content is not hashed: that would take as long as the merge itself.
        """
        for file, descriptor in self._descriptors.items():
            status = os.fstat(descriptor)
            first = min(entry.offset for entry in self._entries[file].values())
            digest = hashlib.sha256(os.pread(descriptor, first, 0)).hexdigest()
            yield (
                file,
                {
                    "bytes": status.st_size,
                    "modified_ns": status.st_mtime_ns,
                    "header_sha256": digest,
                },
            )

    def change_times(self) -> Iterator[int]:
        """Yield when each file last changed, in its content or its entry."""
        for descriptor in self._descriptors.values():
            yield os.fstat(descriptor).st_ctime_ns

    def _open_all(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._identities: dict[str, tuple[int, ...]] = {}
        self._entries: dict[str, dict[str, Entry]] = {}
        self._homes: dict[str, str] = {}
        index = self._index()
        for file in dict.fromkeys(index.values()) if index else [self._single().name]:
            self._open(file, index)
        if not self._homes:
            raise CheckpointError(f"{self.path} holds no tensors")
        lost = [name for name in index if name not in self._homes]
        if lost:
            name, file = lost[0], index[lost[0]]
            raise CheckpointError(f"{self.path / INDEX}: {shown(name)} is not in {file!r}")
        parts = self._entries.values()
        self.infos = {name: entry.info for part in parts for name, entry in part.items()}

    def _open(self, file: str, index: dict[str, str]) -> None:
        path = self._file_path(file)
        if index and not self._has(file):
            lost = [each for each in dict.fromkeys(index.values()) if not self._has(each)]
            raise CheckpointError(
                f"{path} does not exist, and {INDEX} names it: "
                f"{len(lost)} of {len(set(index.values()))} shards are missing",
                hint="Finish copying the model, or download it again.",
            )
        descriptor = (open_named if path == self.path else open_member)(path)
        self._descriptors[file] = descriptor
        try:
            self._identities[file] = _identity(os.fstat(descriptor))
            entries, _ = parse_header(descriptor, path=str(path))
        except OSError as error:
            raise unreadable(path, error) from error
        astray = next((name for name in entries if index and index.get(name) != file), None)
        if astray is not None:
            raise CheckpointError(f"{path}: tensor {astray!r} is not listed in {INDEX} for it")
        self._entries[file] = entries
        self._homes.update(dict.fromkeys(entries, file))

    def _index(self) -> dict[str, str]:
        path = self.path / INDEX
        if not self.path.is_dir() or not os.path.lexists(path):
            return {}
        try:
            with os.fdopen(open_member(path), "rb") as stream:
                text = stream.read(LARGEST_INDEX + 1)
        except OSError as error:
            raise unreadable(path, error) from error
        index = parse_index(text, path=str(path))
        if SINGLE not in index.values() and os.path.lexists(self.path / SINGLE):
            raise CheckpointError(
                f"{self.path} holds {SINGLE} and {INDEX}, which leads to other files",
                hint=f"transformers would load {SINGLE}. Name that file itself to merge it, or "
                "move what is stale out of the directory.",
            )
        return index

    def _single(self) -> Path:
        if self.path.is_dir():
            if not os.path.lexists(self.path / SINGLE):
                raise no_model(
                    str(self.path),
                    f"holds neither {SINGLE} nor {INDEX}",
                    _names_in(self.path),
                    f"Name the file itself: {self.path}/",
                )
            return self.path / SINGLE
        if not os.path.lexists(self.path):
            raise CheckpointError(
                f"{self.path} does not exist", hint="Give a directory or a .safetensors file."
            )
        if self.path.suffix != ".safetensors":
            kind, hint = kind_of(self.path.name) or ("of another kind", CONVERT)
            raise CheckpointError(
                f"{self.path} is not a .safetensors file: it is {kind}", hint=hint
            )
        return self.path

    def _has(self, file: str) -> bool:
        return os.path.lexists(self._file_path(file))

    def _file_path(self, file: str) -> Path:
        return self.path / file if self.path.is_dir() else self.path

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the files itself, from a folder of its own.
        path = self.path.absolute()
        return {"path": path, "_name": self._name, "_identities": self._identities}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_all()
        for file, identity in state["_identities"].items():
            if self._identities.get(file, ())[_OF_ONE_MACHINE:] != identity[_OF_ONE_MACHINE:]:
                raise _changed(self._file_path(file), _DIFFERS)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            close(descriptor)  # at the end of a program that kept it, `os` is gone


def _names_in(directory: Path) -> list[str]:
    with reading(directory):
        return [each.name for each in directory.iterdir()]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _changed(path: Path, how: str) -> IntegrityError:
    return IntegrityError(
        f"{path} changed while it was being read: {how}",
        hint="Run again when nothing writes to it.",
    )
