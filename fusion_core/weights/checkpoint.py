"""A checkpoint on disk as a `WeightSource`: a safetensors file, or a directory of them.

Files are read with `pread`: a memory map kills the process with SIGBUS when a file is truncated
under it, and counts the page cache as this process's memory.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError
from fusion_core.weights.format import LARGEST_INDEX, Entry, parse_header, parse_index
from fusion_core.weights.source import WeightSource, memory_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class CheckpointSource(WeightSource):
    """The tensors of a safetensors file, or of a directory with one file or an index of several.

    Only headers are read at construction. Raises `CheckpointError` naming the file for anything
    missing, truncated or malformed. `name` is what to call it, where that is not the path.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        self.path = Path(path)
        self._name = name or str(path)
        self._open_all()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor from its file."""
        entry, file = self._entries[name]
        values = torch.empty(stop - start, dtype=entry.info.dtype)
        view, offset = memory_of(values), entry.offset + start * values.itemsize
        while view:
            try:
                count = os.preadv(self._descriptors[file], [view], offset)
            except OSError as error:
                raise _unreadable(self._file_path(file), error) from error
            if count == 0:
                raise CheckpointError(
                    f"{self._file_path(file)}: ends inside tensor {name!r}",
                    hint="The file changed while it was being read.",
                )
            view, offset = view[count:], offset + count
        return values

    def describe(self) -> str:
        """Return the path, or the name given at construction."""
        return self._name

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Identify the input files: size, time of change, hash of the header.

        The content is not hashed: that would take as long as the merge itself.
        """
        for file, descriptor in self._descriptors.items():
            status = os.fstat(descriptor)
            first = min(entry.offset for entry, home in self._entries.values() if home == file)
            digest = hashlib.sha256(os.pread(descriptor, first, 0)).hexdigest()
            yield (
                file,
                {
                    "bytes": status.st_size,
                    "modified_ns": status.st_mtime_ns,
                    "header_sha256": digest,
                },
            )

    def _open_all(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._entries: dict[str, tuple[Entry, str]] = {}
        index = self._index()
        for file in dict.fromkeys(index.values()) if index else [self._single().name]:
            self._open(file, index)
        if not self._entries:
            raise CheckpointError(f"{self.path} holds no tensors")
        lost = [name for name in index if name not in self._entries]
        if lost:
            raise CheckpointError(f"{self.path / INDEX}: {lost[0]!r} is not in {index[lost[0]]!r}")
        self.infos = {name: entry.info for name, (entry, _) in self._entries.items()}

    def _open(self, file: str, index: dict[str, str]) -> None:
        path = self._file_path(file)
        if path.exists() and not path.is_file():  # a pipe would block, a device never end
            raise CheckpointError(f"{path} is no regular file")
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._descriptors[file] = descriptor
            entries, _ = parse_header(descriptor, path=str(path))
        except OSError as error:
            raise _unreadable(path, error) from error
        for name, entry in entries.items():
            if index and index.get(name) != file:
                raise CheckpointError(f"{path}: tensor {name!r} is not listed in {INDEX} for it")
            self._entries[name] = (entry, file)

    def _index(self) -> dict[str, str]:
        index = self.path / INDEX
        if not self.path.is_dir() or not index.is_file():
            return {}
        try:
            with index.open("rb") as stream:
                text = stream.read(LARGEST_INDEX + 1)
        except OSError as error:
            raise _unreadable(index, error) from error
        return parse_index(text, path=str(index))

    def _single(self) -> Path:
        if self.path.is_file():
            if self.path.suffix != ".safetensors":
                raise CheckpointError(
                    f"{self.path} is no .safetensors file",
                    hint="Convert it with transformers: model.save_pretrained(DIRECTORY).",
                )
            return self.path
        if not self.path.is_dir():
            raise CheckpointError(
                f"{self.path} does not exist", hint="Give a directory or a .safetensors file."
            )
        if not (self.path / SINGLE).is_file():
            raise CheckpointError(
                f"{self.path} holds neither {SINGLE} nor {INDEX}",
                hint="Give the directory that save_pretrained wrote.",
            )
        return self.path / SINGLE

    def _file_path(self, file: str) -> Path:
        return self.path / file if self.path.is_dir() else self.path

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_name": self._name}  # a worker opens the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_all()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}")
