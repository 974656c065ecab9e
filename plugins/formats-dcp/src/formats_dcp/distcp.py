"""Distributed checkpoints as `torch.distributed.checkpoint.save` writes them."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from formats_dcp.items import find_values
from formats_dcp.metadata import parse_metadata
from formats_dcp.naming import count_parts, select_model
from formats_dcp.plugin import FOLDERS
from formats_dcp.shards import ShardedSource, ShardFiles, StoredBox
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats_dcp.metadata import Entry, Shard
    from fusion_core.weights import Location

_METADATA = ".metadata"
#: The most bytes of metadata, enough for about 45,000 shards. Its objects take thirty times the
#: bytes of their text. The core's variable for larger headers raises the limit.
_LARGEST = 2**23
_VARIABLE = "FUSION_LARGEST_HEADER"


class DcpSource(ShardedSource):
    """The model in a distributed checkpoint, without its optimizer.

    It needs no process group, and reads `.metadata` without unpickling it. Tensors have the names
    that they had in the state dict of the model. Everything else that the trainer saved is left
    out. A warning and the provenance say what.

    Raises `CheckpointError` for missing, replicated or overlapping shards, tensors that are not
    contiguous, and anything but the files that torch writes.
    """

    def __init__(self, location: Location) -> None:
        super().__init__(DistcpFiles(location))


class DistcpFiles(ShardFiles):
    """The `.distcp` files of a checkpoint."""

    def find_boxes(self) -> Iterator[StoredBox]:
        """Yield the shards of the model's tensors."""
        folder = self._find_folder()
        entries, objects = self._read_metadata(folder)
        model, others = select_model(entries, objects, self.describe())
        self.shapes = {name: entry.shape for name, entry in model.items()}
        self._present = {*self.location.matching(f"{folder}*.distcp")}
        self._left_out = count_parts(others, objects)
        if self._left_out:
            _say_once(f"distributed checkpoints: read the model, left out {self._left_out}")
        for name, entry in model.items():
            shards = [shard for shard in entry.shards if 0 not in shard.sizes]
            for shard in shards or entry.shards[:1]:
                yield self._locate(folder, name, entry, shard)

    def _find_folder(self) -> str:
        if self.location.pinned is None and not self.location.path.is_dir():
            raise CheckpointError(
                f"expected the directory of a distributed checkpoint, found a file: "
                f"{self.describe()}",
                hint=f"Name the directory: {self.location.directory}",
            )
        for folder in FOLDERS:
            if self.location.matching(f"{folder}{_METADATA}"):
                return folder
        raise CheckpointError(
            f"{self.describe()}: .metadata is missing, which torch writes last",
            hint="The save did not finish, or the file was not copied: `cp -r DIR/.` copies names "
            "that begin with a dot, `cp DIR/*` does not.",
        )

    def _read_metadata(self, folder: str) -> tuple[list[Entry], list[str]]:
        is_limited = not os.environ.get(_VARIABLE)
        header = self.open(f"{folder}{_METADATA}", _LARGEST if is_limited else None)
        if is_limited and header.size > _LARGEST:
            raise CheckpointError(
                f"{header.path}: expected at most {_LARGEST:,} bytes of metadata, got "
                f"{header.size:,}",
                hint=f"If you trust the file, set {_VARIABLE} to {header.size}.",
            )
        return parse_metadata(header.read(), str(header.path))

    def _locate(self, folder: str, name: str, entry: Entry, shard: Shard) -> StoredBox:
        box = tuple(
            (first, first + size) for first, size in zip(shard.offsets, shard.sizes, strict=True)
        )
        stored = shard.stored
        if stored is None:
            raise CheckpointError(
                f"{self.describe()}: tensor {entry.name!r}: .metadata does not say where the shard "
                f"at {list(shard.offsets)} is"
            )
        file = f"{folder}{stored.file}"
        if file not in self._present:
            raise CheckpointError(
                f"{self.describe()}: {file} is missing, which holds a shard of {entry.name!r}",
                hint="Copy the files of all ranks, or take another step.",
            )
        offset = find_values(self.open(file), stored, shard, entry.dtype)
        return StoredBox(name, entry.dtype, box, file, offset)

    def _identify(self, file: str) -> dict[str, Any]:
        identity = super()._identify(file)
        return {**identity, "left_out": self._left_out} if file.endswith(_METADATA) else identity


@cache
def _say_once(message: str) -> None:
    """Warn, once for all checkpoints of a run."""
    logging.getLogger(__name__).warning(message)
