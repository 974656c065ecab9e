"""A checkpoint on disk as a `WeightSource`: a safetensors file, or a directory of them."""

from __future__ import annotations

import os
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading._foreign import CONVERT, kind_of, no_model
from fusion_core.weights.reading.containment import open_member, reading, unreadable
from fusion_core.weights.reading.files import FileSource
from fusion_core.weights.reading.format import LARGEST_INDEX, parse_header, parse_index
from fusion_core.weights.reading.location import INDEX, SINGLE, Location
from fusion_core.weights.reading.untrusted import largest_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.weights.reading.stored import StoredTensor


class CheckpointSource(FileSource):
    """The tensors of a safetensors file, or of a directory with one file or an index of several.

    Only headers are read at construction. Raises `CheckpointError` naming the file for anything
    missing, truncated, malformed or outside the directory (`containment.py`), and
    for a directory with both one file and an index that leads elsewhere: loaders differ in which
    they take. `name` is what to call it, where that is not the path.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        super().__init__(Location(Path(path), name or str(path)))

    @property
    def path(self) -> Path:
        """The file or directory."""
        return self.location.path

    def find_tensors(self) -> Iterator[StoredTensor]:
        """Yield the tensors of each file, in the order of the index."""
        index = self._index()
        names: set[str] = set()
        for file in dict.fromkeys(index.values()) if index else [self._single().name]:
            for stored in self._tensors_of(file, index):
                names.add(stored.info.name)
                yield stored
        lost = [name for name in index if name not in names]
        if lost:
            name, file = lost[0], index[lost[0]]
            raise CheckpointError(f"{self.path / INDEX}: {shown(name)} is not in {file!r}")

    def _tensors_of(self, file: str, index: dict[str, str]) -> list[StoredTensor]:
        if index and not self._has(file):
            lost = [fromkey for fromkey in dict.fromkeys(index.values()) if not self._has(fromkey)]
            raise CheckpointError(
                f"{self.path / file} does not exist, and {INDEX} names it: "
                f"{len(lost)} of {len(set(index.values()))} shards are missing",
                hint="Finish copying the model, or download it again.",
            )
        header = self.open(file, 8 + largest_header())
        stored, _ = parse_header(header, header.size, file, path=str(header.path))
        astray = next((n for n in stored if index and index.get(n) != file), None)
        if astray is not None:
            raise CheckpointError(
                f"{header.path}: tensor {astray!r} is not listed in {INDEX} for it"
            )
        return list(stored.values())

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
        return os.path.lexists(self.path / file)


def _names_in(directory: Path) -> list[str]:
    with reading(directory):
        return [path.name for path in directory.iterdir()]
