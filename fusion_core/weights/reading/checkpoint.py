"""A safetensors checkpoint on disk as a `WeightSource`: one file, or a directory of them."""

from __future__ import annotations

import os
from pathlib import Path
from reprlib import repr as shorten
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading._unsupported import CONVERT, no_model_error, unsupported_kind
from fusion_core.weights.reading.containment import read_whole, report_unreadable
from fusion_core.weights.reading.files import FileSource
from fusion_core.weights.reading.format import LARGEST_INDEX, parse_header, parse_index
from fusion_core.weights.reading.location import INDEX, SINGLE, Location
from fusion_core.weights.reading.untrusted_json import largest_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.weights.reading.header import StoredTensor


class CheckpointSource(FileSource):
    """The tensors of a safetensors file, or of a directory with one file or an index of several.

    The constructor reads headers only. It raises `CheckpointError` naming the file for anything
    missing, truncated, malformed or outside the directory (`containment.py`), and for a directory
    with both `model.safetensors` and an index of other files, because loaders differ in which they
    read. `name` is used in errors in place of the path.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        super().__init__(Location(Path(path), name or str(path)))

    @property
    def path(self) -> Path:
        """The file or directory."""
        return self.location.path

    def find_tensors(self) -> Iterator[StoredTensor]:
        """Yield the tensors of each file, in the order of the index."""
        index = self._read_index()
        names: set[str] = set()
        for file in dict.fromkeys(index.values()) if index else [self._find_single().name]:
            for stored in self._read_header(file, index):
                names.add(stored.info.name)
                yield stored
        missing = [name for name in index if name not in names]
        if missing:
            name, file = missing[0], index[missing[0]]
            raise CheckpointError(f"{self.path / INDEX}: {shorten(name)} is not in {file!r}")

    def _read_header(self, file: str, index: dict[str, str]) -> list[StoredTensor]:
        if index and not os.path.lexists(self.path / file):
            shards = dict.fromkeys(index.values())
            missing = [shard for shard in shards if not os.path.lexists(self.path / shard)]
            raise CheckpointError(
                f"{self.path / file} does not exist, and {INDEX} names it: "
                f"{len(missing)} of {len(shards)} shards are missing",
                hint="Finish copying the model, or download it again.",
            )
        header = self.open(file, 8 + largest_header())
        stored, _ = parse_header(header, header.size, file, path=str(header.path))
        unlisted = next((name for name in stored if index and index.get(name) != file), None)
        if unlisted is not None:
            raise CheckpointError(
                f"{header.path}: tensor {unlisted!r} is not listed in {INDEX} for this file"
            )
        return list(stored.values())

    def _read_index(self) -> dict[str, str]:
        path = self.path / INDEX
        if not self.path.is_dir() or not os.path.lexists(path):
            return {}
        index = parse_index(read_whole(path, LARGEST_INDEX), path=str(path))
        if SINGLE not in index.values() and os.path.lexists(self.path / SINGLE):
            raise CheckpointError(
                f"{self.path} holds {SINGLE} and {INDEX}, which names other files",
                hint=f"transformers would load {SINGLE}. Name that file itself to merge it, or "
                "move the outdated files out of the directory.",
            )
        return index

    def _find_single(self) -> Path:
        if self.path.is_dir():
            if not os.path.lexists(self.path / SINGLE):
                with report_unreadable(self.path):
                    names = [path.name for path in self.path.iterdir()]
                raise no_model_error(
                    str(self.path),
                    f"holds neither {SINGLE} nor {INDEX}",
                    names,
                    f"Name the file itself: {self.path}/",
                )
            return self.path / SINGLE
        if not os.path.lexists(self.path):
            raise CheckpointError(
                f"{self.path} does not exist", hint="Give a directory or a .safetensors file."
            )
        if self.path.suffix != ".safetensors":
            kind, hint = unsupported_kind(self.path.name) or ("of another kind", CONVERT)
            raise CheckpointError(
                f"{self.path} is not a .safetensors file: it is {kind}", hint=hint
            )
        return self.path
