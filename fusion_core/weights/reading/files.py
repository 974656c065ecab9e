"""Tensors stored in files as plain numbers: the base of every format of such files.

A format finds the tensors and their offsets. This module opens, reads and watches the files, and
refuses impossible headers of any format. It reads with `pread`: a memory map kills the process with
SIGBUS if a file is truncated under it, and counts the page cache as the process's memory.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import replace
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError, FusionError
from fusion_core.machine.distributions import summarize_error
from fusion_core.weights.origin import (
    DIFFERS,
    Origin,
    Stamp,
    changed_error,
    may_be_same_file,
    stamp_of,
)
from fusion_core.weights.reading.containment import open_member, open_named, unreadable_error
from fusion_core.weights.reading.header import (
    Header,
    StoredTensor,
    is_valid_name,
    is_valid_shape,
    without_garbage_collection,
)
from fusion_core.weights.source import WeightSource, view_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fusion_core.weights.reading.location import Location

_DAMAGED = "The file is damaged or of another kind; download or save it again."


class FileSource(WeightSource):
    """The tensors of a model's files, which hold them as plain numbers in row-major order.

    A subclass implements a format. Its `find_tensors` reads headers with `open`, and yields a
    `StoredTensor` for each tensor. This class does the rest:

    - It opens only files of the model, each once, and reads ranges from any thread.
    - It refuses tensors that overlap each other or the end of their file.
    - It turns an exception of `find_tensors` about a malformed header into a `CheckpointError`.
    - A copy in another process opens the files again, and a changed file is an error.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._open_all()

    @abstractmethod
    def find_tensors(self) -> Iterable[StoredTensor]:
        """Yield every tensor of the model, from headers alone; called once, on opening."""

    def open(self, file: str, largest: int | None = None) -> Header:
        """Open a file of the model and return its header, limited to `largest` bytes."""
        if file not in self._headers:
            path = self.location.file(file)
            descriptor = (open_named if path == self.location.path else open_member)(path)
            self._descriptors[file] = descriptor
            self._stamps[file] = stamp_of(os.fstat(descriptor))
            self._headers[file] = Header(descriptor, path, largest)
        return self._headers[file]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor from its file."""
        stored = self._stored[name]
        path = self._headers[stored.file].path
        values = torch.empty(stop - start, dtype=stored.info.dtype)
        view, offset = view_bytes(values), stored.offset + start * values.itemsize
        while view:
            try:
                count = os.preadv(self._descriptors[stored.file], [view], offset)
            except OSError as error:
                raise unreadable_error(path, error) from error
            if count == 0:
                raise changed_error(path, f"ends inside tensor {name!r}")
            view, offset = view[count:], offset + count
        return values

    def file_range(self, name: str, start: int) -> tuple[int, int] | None:
        """Return the tensor's file and the offset of an element, unless a subclass reads itself."""
        if type(self).read is not FileSource.read:
            return None
        stored = self._stored[name]
        offset = stored.offset + start * stored.info.dtype.itemsize
        return self._descriptors[stored.file], offset

    def describe(self) -> str:
        """Return the path, or the repository at its commit."""
        return self.location.name

    @property
    def origin(self) -> Origin:
        """The files: size, time of change, and a hash of what was read of the header.

        The content is not hashed, because that would take as long as the merge itself.
        """
        return self._origin

    @without_garbage_collection()
    def _open_all(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._stamps: dict[str, Stamp] = {}
        self._headers: dict[str, Header] = {}
        self._stored = {stored.info.name: stored for stored in self._sort_tensors()}
        if not self._stored:
            raise CheckpointError(f"{self.location.path} holds no tensors")
        self.infos = {name: stored.info for name, stored in self._stored.items()}
        self._origin = Origin(
            files={file: self._identify(file) for file in self._headers},
            stamps={header.path: self._stamps[file] for file, header in self._headers.items()},
        )

    def _identify(self, file: str) -> dict[str, Any]:
        _, _, size, modified, _ = self._stamps[file]
        digest = self._headers[file].digest()
        return {"bytes": size, "modified_ns": modified, "header_sha256": digest}

    def _sort_tensors(self) -> list[StoredTensor]:
        """Return the tensors in the order of their bytes; raise for invalid or overlapping ones."""
        try:
            tensors = list(map(self._check_description, self.find_tensors()))
        except (FusionError, MemoryError):
            raise
        except Exception as error:  # whatever a parser raises for unexpected content
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's refusal
            problem = f"{type(self).__name__} met {summarize_error(error)}"
            raise CheckpointError(
                f"{self.describe()} is malformed: {problem}", hint=_DAMAGED
            ) from error
        numbers = {file: number for number, file in enumerate(self._headers)}
        tensors.sort(key=lambda item: (numbers[item.file], item.offset, item.info.nbytes))
        names: set[str] = set()
        file, end = "", 0
        for stored in tensors:
            if stored.file != file:
                file, end = stored.file, 0
            if stored.info.name in names:
                raise self._tensor_error(stored, "is listed twice")
            names.add(stored.info.name)
            stop = stored.offset + stored.info.nbytes
            size = self._headers[file].size
            if stored.offset < end or stop > size:
                problem = f"claims bytes {stored.offset} to {stop}: expected bytes {end} to {size}"
                raise self._tensor_error(stored, problem)
            end = stop
        return tensors

    def _check_description(self, stored: StoredTensor) -> StoredTensor:
        info = stored.info
        if not is_valid_name(info.name):
            problem = f"has a name that is empty, too long or unprintable: {shorten(info.name)}"
            raise self._tensor_error(stored, problem)
        if not is_valid_shape(info.shape):
            raise self._tensor_error(stored, f"has the impossible shape {shorten(info.shape)}")
        if type(stored.offset) is not int:
            raise self._tensor_error(stored, f"has the impossible offset {shorten(stored.offset)}")
        return stored

    def _tensor_error(self, stored: StoredTensor, problem: str) -> CheckpointError:
        path = self._headers[stored.file].path
        name = shorten(stored.info.name)
        return CheckpointError(f"{path}: tensor {name} {problem}", hint=_DAMAGED)

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the files itself, and may run in another directory.
        location = replace(self.location, path=self.location.path.absolute())
        return {"location": location, "_stamps": self._stamps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.location = state["location"]
        self._open_all()
        for file, stamp in state["_stamps"].items():
            if not may_be_same_file(self._stamps.get(file, ()), stamp):
                raise changed_error(self.location.directory / file, DIFFERS)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            close(descriptor)  # a default argument: when the program ends, `os` may be gone
