"""The output's safetensors files: their layout, and the files while a run writes them.

A layout depends only on the tensors' descriptions and the shard size, so it is known before any
work begins. Each file has its full size from the start, and zeros in place of its header until it
is complete. This module does not decide when that is or where the files go afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.weights.reading.format import build_header
from fusion_core.weights.reading.header import StoredTensor
from fusion_core.weights.reading.location import SINGLE
from fusion_core.weights.source import view_bytes
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.digest import bytes_digest
from fusion_core.weights.writing.disk import DataFile, allocate, free_bytes, report_disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from fusion_core.weights.source import TensorInfo

#: The beginning of the names of a model's weight files.
STEM = SINGLE.removesuffix(".safetensors")
_METADATA = {"format": "pt"}
_CHUNK = 2**20


@dataclass(frozen=True)
class Shard:
    """One safetensors file of the output."""

    file: str
    infos: Sequence[TensorInfo]
    header: bytes
    size: int


@dataclass(frozen=True)
class Layout:
    """All safetensors files of an output."""

    shards: Sequence[Shard]

    @classmethod
    def of(cls, infos: Sequence[TensorInfo], shard_size: int, stem: str = STEM) -> Layout:
        """Assign tensors to files of at most `shard_size` bytes of data, named after `stem`.

        A tensor larger than that gets a file of its own. Only a full model has several files: PEFT
        and other readers expect one.
        """
        groups: list[list[TensorInfo]] = [[]]
        room = shard_size
        for info in infos:
            if stem == STEM and info.nbytes > room and groups[-1]:
                groups.append([])
                room = shard_size
            groups[-1].append(info)
            room -= info.nbytes
        count = len(groups)
        shards = []
        for number, group in enumerate(groups, 1):
            part = "" if count == 1 else f"-{number:05d}-of-{count:05d}"
            file = f"{stem}{part}.safetensors"
            header, data_size = build_header(group, _METADATA)
            shards.append(Shard(file, group, header, len(header) + data_size))
        return cls(shards)

    @cached_property
    def locations(self) -> dict[str, StoredTensor]:
        """The file of each tensor and the offset in it, by name, in the order of the files."""
        locations = {}
        for shard in self.shards:
            offset = len(shard.header)
            for info in shard.infos:
                locations[info.name] = StoredTensor(shard.file, info, offset)
                offset += info.nbytes
        return locations

    @property
    def sha256(self) -> str:
        """A digest that identifies this layout."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.file}\0".encode() + shard.header)
        return digest.hexdigest()

    def index(self) -> bytes | None:
        """Return the content of the index file, or None for a single shard."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: location.file for name, location in self.locations.items()}
        total = sum(location.info.nbytes for location in self.locations.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return json.dumps(index, indent=2).encode() + b"\n"


@dataclass(frozen=True)
class Shards:
    """The files of a layout, open for writing from any thread or, pickled, from any process."""

    layout: Layout
    files: Mapping[str, DataFile]

    @classmethod
    def reserve(cls, layout: Layout, directory: Path) -> Shards:
        """Create or open the files, and reserve their space.

        Raises `DiskError` with the bytes needed and free if the disk is too full.
        """
        files = {shard.file: DataFile(directory / shard.file) for shard in layout.shards}
        statuses = [os.fstat(file.descriptor) for file in files.values()]
        allocated = sum(min(status.st_blocks * 512, status.st_size) for status in statuses)
        needed = max(sum(shard.size for shard in layout.shards) - allocated, 0)
        free = free_bytes(directory)
        for shard in layout.shards:
            file = files[shard.file]
            with report_disk_errors(file.path, needed=needed, free=free):
                allocate(file.descriptor, shard.size, fits=needed <= free)
            file.write(memoryview(bytes(len(shard.header))), 0)  # an old file may have a header
            fault_point("file reserved")
        return cls(layout, files)

    def digest(self, name: str) -> str:
        """Return the BLAKE3 of a tensor's bytes in its file.

        The file is opened again, because a network file system shows another machine's writes only
        to those who open the file after them.
        """
        location = self.layout.locations[name]
        size = location.info.nbytes
        file = DataFile(self.files[location.file].path, flags=0)
        buffer = memoryview(bytearray(min(size, _CHUNK)))
        return bytes_digest(file.chunks(location.offset, size, buffer))

    def intact_tensors(self, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the recorded tensors, with their digests, whose bytes still have that digest."""
        names = [name for name in self.layout.locations if name in recorded]
        with ThreadPoolExecutor() as threads:
            digests = zip(names, threads.map(self.digest, names), strict=True)
            return {name: digest for name, digest in digests if digest == recorded[name]}

    def write(self, info: TensorInfo, start: int, values: torch.Tensor) -> None:
        """Write elements of a tensor, beginning with element `start`."""
        location = self.layout.locations[info.name]
        values = values.contiguous()
        offset = location.offset + start * info.dtype.itemsize
        self.files[location.file].write(view_bytes(values), offset)
        fault_point("piece written")

    def sync(self, infos: Iterable[TensorInfo]) -> None:
        """Make durable what this process has written into the files of some tensors."""
        for file in dict.fromkeys(self.layout.locations[info.name].file for info in infos):
            self.files[file].sync()

    def complete(self) -> None:
        """Write the headers, which make the files readable. All data must be durable."""
        # Opened again, as in `digest`: the rest of a header's page may be a worker's data.
        files = {name: DataFile(file.path, flags=0) for name, file in self.files.items()}
        for shard in self.layout.shards:
            files[shard.file].write(memoryview(shard.header), 0)
            fault_point("header written")
        for file in files.values():
            file.sync()
        fault_point("headers synced")
