"""Where every tensor of an output lies: files, headers and offsets, all known before any work.

Plain data that depends on nothing but the tensors' descriptions and the shard size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.weights.reading.format import build_header
from fusion_core.weights.reading.location import SINGLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.weights.source import TensorInfo

_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Place:
    """Where one tensor lies; `offset` counts from the start of the file."""

    info: TensorInfo
    file: str
    offset: int


@dataclass(frozen=True)
class Shard:
    """One file of the output."""

    file: str
    infos: Sequence[TensorInfo]
    header: bytes
    size: int

    @classmethod
    def of(cls, file: str, infos: Sequence[TensorInfo]) -> Shard:
        """Lay tensors out one after the other, behind their header."""
        header, data = build_header(infos, _METADATA)
        return cls(file, infos, header, len(header) + data)

    @property
    def places(self) -> Iterator[Place]:
        """Where each tensor lies, in the order of the file."""
        offset = len(self.header)
        for info in self.infos:
            yield Place(info, self.file, offset)
            offset += info.nbytes


@dataclass(frozen=True)
class Layout:
    """All files of an output."""

    shards: Sequence[Shard]

    @classmethod
    def of(cls, infos: Sequence[TensorInfo], shard_size: int) -> Layout:
        """Put tensors into files of at most `shard_size` bytes; a larger tensor has its own."""
        groups = _grouped(infos, shard_size)
        count = len(groups)
        if count == 1:
            return cls([Shard.of(SINGLE, groups[0])])
        names = (f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1))
        return cls([Shard.of(name, group) for name, group in zip(names, groups, strict=True)])

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each tensor lies, by name, in the order of the files."""
        return {position.info.name: position for shard in self.shards for position in shard.places}

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(shard.size for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Tell this layout from every other."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.file}\0".encode() + shard.header)
        return digest.hexdigest()

    def index(self) -> bytes | None:
        """Return the index file's content; None for a single file, which has none."""
        if len(self.shards) == 1:
            return None
        weight_map = {place.info.name: place.file for place in self.places.values()}
        total = sum(place.info.nbytes for place in self.places.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return json.dumps(index, indent=2).encode() + b"\n"


def _grouped(infos: Sequence[TensorInfo], shard_size: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = [[]]
    room = shard_size
    for info in infos:
        if info.nbytes > room and groups[-1]:
            groups.append([])
            room = shard_size
        groups[-1].append(info)
        room -= info.nbytes
    return groups
