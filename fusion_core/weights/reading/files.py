"""Tensors that lie in files as plain numbers: what every format of such files shares.

A format says which tensors there are and where each begins. How files are opened, read and watched,
and what is refused whatever a header claims, is here. They are read with `pread`: a memory map
kills the process with SIGBUS when a file is truncated under it, and counts the page cache as this
process's memory.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import replace
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import CheckpointError, FusionError
from fusion_core.machine.installed import cause_of
from fusion_core.weights.origin import DIFFERS, Origin, Stamp, changed, is_same_elsewhere, stamp_of
from fusion_core.weights.reading.containment import open_member, open_named, unreadable
from fusion_core.weights.reading.header import Header
from fusion_core.weights.reading.stored import StoredTensor, is_name, is_shape
from fusion_core.weights.source import WeightSource, memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fusion_core.weights.reading.location import Location

_DAMAGED = "The file is damaged or of another kind; download or save it again."


class FileSource(WeightSource):
    """The tensors of a model's files, which hold them as plain numbers in row-major order.

    A subclass is a format. Its `find_tensors` reads headers, by `open`, and yields a `StoredTensor`
    for each tensor. The rest is done here: only files of the model are opened, and once; no tensor
    may overlap another or the end of its file; ranges are read from any thread; a copy in another
    process opens the files again, and a file that changed is noticed. If a malformed header
    makes `find_tensors` raise, the error becomes a `CheckpointError`.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._open_all()

    @abstractmethod
    def find_tensors(self) -> Iterable[StoredTensor]:
        """Yield every tensor of the model, from headers alone; called once, when it is opened."""

    def open(self, file: str, largest: int | None = None) -> Header:
        """Open a file of the model and return its header, of which `largest` bytes may be read."""
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
        view, offset = memory_of(values), stored.offset + start * values.itemsize
        while view:
            try:
                count = os.preadv(self._descriptors[stored.file], [view], offset)
            except OSError as error:
                raise unreadable(path, error) from error
            if count == 0:
                raise changed(path, f"ends inside tensor {name!r}")
            view, offset = view[count:], offset + count
        return values

    def describe(self) -> str:
        """Return the path, or the repository at its commit."""
        return self.location.name

    @property
    def origin(self) -> Origin:
        """The files: size, time of change, and a hash of what was read of the header.

        The content is not hashed: that would take as long as the merge itself.
        """
        return self._origin

    def _open_all(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._stamps: dict[str, Stamp] = {}
        self._headers: dict[str, Header] = {}
        self._stored = {stored.info.name: stored for stored in self._checked_tensors()}
        if not self._stored:
            raise CheckpointError(f"{self.location.path} holds no tensors")
        self.infos = {name: stored.info for name, stored in self._stored.items()}
        self._origin = Origin(
            files={file: self._identity(file) for file in self._headers},
            stamps={header.path: self._stamps[file] for file, header in self._headers.items()},
        )

    def _identity(self, file: str) -> dict[str, Any]:
        _, _, size, modified, _ = self._stamps[file]
        digest = self._headers[file].digest()
        return {"bytes": size, "modified_ns": modified, "header_sha256": digest}

    def _checked_tensors(self) -> list[StoredTensor]:
        """Return the tensors in the order of their places; raises for what cannot be."""
        try:
            found = list(map(self._check_description, self.find_tensors()))
        except (FusionError, MemoryError):
            raise
        except Exception as error:  # whatever parsers raise for what they did not expect
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's refusal
            met = f"{type(self).__name__} met {cause_of(error)}"
            raise CheckpointError(
                f"{self.describe()} is malformed: {met}", hint=_DAMAGED
            ) from error
        numbers = {file: number for number, file in enumerate(self._headers)}
        found.sort(key=lambda each: (numbers[each.file], each.offset, each.info.nbytes))
        names: set[str] = set()
        file, end = "", 0
        for stored in found:
            if stored.file != file:
                file, end = stored.file, 0
            if stored.info.name in names:
                raise self._refusal(stored, "is there twice")
            names.add(stored.info.name)
            stop = stored.offset + stored.info.nbytes
            if stored.offset < end or stop > self._headers[file].size:
                span = f"bytes {stored.offset} to {stop}"
                space = f"{end} to {self._headers[file].size}"
                raise self._refusal(stored, f"cannot lie in {span}: expected them in {space}")
            end = stop
        return found

    def _check_description(self, stored: StoredTensor) -> StoredTensor:
        """Return a tensor that can be; raises `CheckpointError` for another."""
        info = stored.info
        if not is_name(info.name):
            problem = f"has a name that is empty, too long or unprintable: {shown(info.name)}"
            raise self._refusal(stored, problem)
        if not is_shape(info.shape):
            raise self._refusal(stored, f"has the impossible shape {shown(info.shape)}")
        if type(stored.offset) is not int:
            raise self._refusal(stored, f"has the impossible offset {shown(stored.offset)}")
        return stored

    def _refusal(self, stored: StoredTensor, problem: str) -> CheckpointError:
        path = self._headers[stored.file].path
        return CheckpointError(f"{path}: tensor {shown(stored.info.name)} {problem}", hint=_DAMAGED)

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the files itself, from a folder of its own.
        location = replace(self.location, path=self.location.path.absolute())
        return {"location": location, "_stamps": self._stamps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.location = state["location"]
        self._open_all()
        for file, stamp in state["_stamps"].items():
            if not is_same_elsewhere(self._stamps.get(file, ()), stamp):
                raise changed(self.location.directory / file, DIFFERS)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            close(descriptor)  # at the end of a program that kept it, `os` is gone
