"""The output's safetensors files while they are written: reserved, filled in any order, completed.

A file has its size from the start and zeros for a header until it is complete. Nothing here knows
when that is, or where the files are going.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.source import memory_of
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing._follower import place_digest
from fusion_core.weights.writing.disk import DataFile, free_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from fusion_core.weights.source import TensorInfo
    from fusion_core.weights.writing._layout import Layout


@dataclass(frozen=True)
class Shards:
    """The files of a layout, to write pieces into from any thread or, pickled, any process."""

    layout: Layout
    files: Mapping[str, DataFile]

    @classmethod
    def reserve(cls, layout: Layout, directory: Path) -> Shards:
        """Make the files, or open those that are there, and reserve their space.

        Raises `DiskError`, with the bytes needed and free, if there is not enough.
        """
        files = {each.file: DataFile(directory / each.file) for each in layout.shards}
        allocated = sum(each.allocated for each in files.values())
        needed, free = max(layout.size - allocated, 0), free_bytes(directory)
        for shard in layout.shards:
            file = files[shard.file]
            file.reserve(shard.size, needed=needed, free=free)
            file.write(memoryview(bytes(len(shard.header))), 0)  # one that was there may have it
            fault_point("file reserved")
        return cls(layout, files)

    def intact(self, recorded: Mapping[str, str]) -> dict[str, str]:
        """Hash tensors again; returns those that are as they were recorded, by digest."""
        places = [place for name, place in self.layout.places.items() if name in recorded]
        with ThreadPoolExecutor() as threads:
            found = threads.map(lambda each: place_digest(self.files[each.file], each), places)
            digests = zip((place.info.name for place in places), found, strict=True)
            return {name: digest for name, digest in digests if digest == recorded[name]}

    def write(self, info: TensorInfo, start: int, values: torch.Tensor) -> None:
        """Write elements of a tensor from `start` on."""
        place = self.layout.places[info.name]
        values = values.contiguous()
        offset = place.offset + start * info.dtype.itemsize
        self.files[place.file].write(memory_of(values), offset)
        fault_point("piece written")

    def sync(self, infos: Sequence[TensorInfo]) -> None:
        """Make everything durable that this process has written into the files of some tensors."""
        for file in {self.layout.places[info.name].file for info in infos}:
            self.files[file].sync()

    def complete(self) -> None:
        """Write the headers, which make checkpoints of the files; all data must be durable."""
        # Opened anew, as in `place_digest`: what follows a header on its page is a worker's.
        files = {name: DataFile(file.path, flags=0) for name, file in self.files.items()}
        for shard in self.layout.shards:
            files[shard.file].write(memoryview(shard.header), 0)
            fault_point("header written")
        for file in files.values():
            file.sync()
        fault_point("headers synced")
