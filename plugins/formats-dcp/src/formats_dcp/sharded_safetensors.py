"""Distributed checkpoints as `HuggingFaceStorageWriter(save_distributed=True)` writes them.

Each rank writes `shard-00001-model-00001-of-00001.safetensors`. Metadata in its header say where
its tensors begin in the whole. There is no list of all shards. A missing file shows by a gap in the
numbers or in a tensor; torch leaves no trace of missing last ranks of all tensors.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from formats_dcp.shards import ShardedSource, ShardFiles, StoredBox
from fusion_core.errors import CheckpointError
from fusion_core.weights import parse_header, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.weights import Location

_PATTERN = "shard-*-model-*-of-*.safetensors"
_NUMBER = re.compile(r"shard-(\d{1,7})-")
_LIMIT = 2**62
_INFO, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


class ShardedSafetensors(ShardedSource):
    """The model in a distributed checkpoint of safetensors files."""

    def __init__(self, location: Location) -> None:
        super().__init__(SafetensorsFiles(location))


class SafetensorsFiles(ShardFiles):
    """The safetensors files of a checkpoint, one or more per rank."""

    def find_boxes(self) -> Iterator[StoredBox]:
        """Yield the tensors of all files, those without elements only if they have no others."""
        files = self.location.matching(_PATTERN)
        self._check_numbers(files)
        shards: dict[str, list[StoredBox]] = {}
        for file in files:
            for box in self._read_boxes(file):
                shards.setdefault(box.tensor, []).append(box)
        # the smallest shapes that hold all shards
        self.shapes = {name: self._shape(boxes) for name, boxes in shards.items()}
        for boxes in shards.values():
            yield from [box for box in boxes if math.prod(box.shape)] or boxes[:1]

    def _read_boxes(self, file: str) -> Iterator[StoredBox]:
        header = self.open(file)
        path = str(header.path)
        tensors, metadata = parse_header(header, header.size, file, path=path)
        info = parse_json(metadata.get(_INFO, "{}").encode(), path=f"{path}: {_INFO}")
        for name, stored in tensors.items():
            offsets = info.get(name, {}).get(_OFFSETS)
            shape = stored.info.shape
            if (
                not isinstance(offsets, list)
                or len(offsets) != len(shape)
                or any(type(offset) is not int or not 0 <= offset < _LIMIT for offset in offsets)
            ):
                raise CheckpointError(
                    f"{path}: {_INFO} does not say where {name!r} begins in the whole tensor",
                    hint="The file is damaged, or another program wrote it.",
                )
            box = tuple((first, first + size) for first, size in zip(offsets, shape, strict=True))
            yield StoredBox(name, stored.info.dtype, box, file, stored.offset)

    def _check_numbers(self, files: list[str]) -> None:
        """Raise `CheckpointError` for a gap in the numbers of ranks."""
        numbers = {int(match[1]) for file in files if (match := _NUMBER.match(file))}
        missing = [number for number in range(1, max(numbers, default=0)) if number not in numbers]
        if missing:
            raise CheckpointError(
                f"{self.describe()}: the files of shard {missing[0]} are missing",
                hint="Copy the files of all ranks, or take another step.",
            )

    def _shape(self, boxes: list[StoredBox]) -> tuple[int, ...]:
        if len({len(box.box) for box in boxes}) > 1:
            raise CheckpointError(
                f"{self.describe()}: the shards of {boxes[0].tensor!r} differ in their dimensions"
            )
        stops = ([stop for _, stop in box.box] for box in boxes if math.prod(box.shape))
        edges = list(stops) or [list(boxes[0].shape)]
        return tuple(map(max, zip(*edges, strict=True)))
