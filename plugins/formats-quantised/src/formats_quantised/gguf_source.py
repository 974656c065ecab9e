"""GGUF files of llama.cpp, with the names and shapes of transformers.

Blocks are dequantised by the `gguf` package itself and rounded to one dtype.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from formats_quantised.declaration import read_dtype
from formats_quantised.encodings import RowEncoding, read_columns
from formats_quantised.gguf_config import compare_config
from formats_quantised.gguf_header import parse_gguf
from formats_quantised.gguf_names import UNUSED, count_heads, rename
from formats_quantised.source import DequantisedSource
from fusion_core import TensorInfo
from fusion_core.errors import CheckpointError
from fusion_core.weights import FileSource, StoredTensor, read_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from formats_quantised.encodings import BandCache, Rectangle
    from formats_quantised.gguf_header import Entry, GgufHeader
    from fusion_core.weights import Contradiction, Location, WeightSource

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
#: Types that are plain numbers.
_PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}


class GgufFiles(FileSource):
    """The bytes of the tensors in one GGUF file, or in all shards of one model."""

    def find_tensors(self) -> Iterator[StoredTensor]:
        """Yield the bytes of each tensor."""
        self.headers: dict[str, GgufHeader] = {}
        self.entries: dict[str, Entry] = {}
        for file in _find_files(self.location):
            header = self.headers[file] = parse_gguf(self.open(file))
            for entry in header.entries:
                if (problem := describe_unreadable(entry.kind)) is not None:
                    message, hint = problem
                    raise CheckpointError(
                        f"{self.location.name}: {file}: tensor {entry.name!r} {message}", hint=hint
                    )
                block, size = _block_of(entry.kind)
                if not entry.shape or entry.shape[-1] % block:
                    raise ValueError(f"tensor {entry.name!r} has shape {entry.shape}")
                count = math.prod(entry.shape) // block * size
                self.entries[entry.name] = entry
                info = TensorInfo(entry.name, (count,), torch.uint8)
                yield StoredTensor(file, info, header.start + entry.offset)


@dataclass(frozen=True)
class GgufTensor(RowEncoding):
    """A tensor of blocks, whose rows may be in the order of llama.cpp."""

    #: the name and the type in the file
    stored_name: str
    kind: int
    #: the heads whose rows are permuted
    heads: int | None

    def read(self, stored: WeightSource, start: int, stop: int, cache: BandCache) -> torch.Tensor:
        """Dequantise a range; a permuted bias, which is short, is read whole."""
        if self.heads is None or len(self.info.shape) > 1:
            return super().read(stored, start, stop, cache)
        octets = stored.read(self.stored_name, 0, stored.infos[self.stored_name].numel)
        order = [self._permuted(row, self.heads) for row in range(start, stop)]
        return _dequantise(octets, self.kind)[order].to(self.info.dtype)

    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Dequantise the blocks that a part touches."""
        block, size = _block_of(self.kind)
        first, last = part.left // block, -(-part.right // block)
        row_bytes = self.width // block * size
        spans = [part.rows]
        if self.heads is not None:
            rows = [self._permuted(row, self.heads) for row in range(*part.rows)]
            spans = [(row, row + 1) for row in rows]
        columns = first * size, last * size
        octets = [read_columns(stored, self.stored_name, s, columns, row_bytes) for s in spans]
        values = _dequantise(torch.cat(octets).view(-1), self.kind).view(part.bottom - part.top, -1)
        offset = part.left - first * block
        return values[:, offset : offset + part.right - part.left]

    def _permuted(self, row: int, heads: int) -> int:
        """Return the position in the file of a row."""
        half = self.info.shape[0] // heads // 2
        head, inner = divmod(row, 2 * half)
        part, pair = divmod(inner, half)
        return head * 2 * half + 2 * pair + part


class GgufSource(DequantisedSource):
    """The tensors of a GGUF file, whose header also describes the model."""

    header: GgufHeader

    def contradictions(self, base_config: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Yield what the header says otherwise than the base's configuration."""
        return compare_config(self.header, base_config)


def open_gguf(location: Location) -> GgufSource:
    """Open a GGUF file, or a directory with one file or with all shards of a model."""
    files = GgufFiles(location)
    header = next(iter(files.headers.values()))
    dtype = _dtype_of(location, files)
    encodings: list[GgufTensor] = []
    stored_names: dict[str, str] = {}
    for name, entry in files.entries.items():
        if name in UNUSED:
            continue
        info = TensorInfo(rename(name, header, location.name), entry.shape, dtype)
        if (earlier := stored_names.setdefault(info.name, name)) != name:
            raise CheckpointError(
                f"{location.name}: {earlier!r} and {name!r} are both {info.name!r}",
                hint="Convert the model again with a current llama.cpp.",
            )
        heads = count_heads(name, header, entry.shape[0], location.name)
        encodings.append(GgufTensor(info, name, entry.kind, heads))
    kinds = sorted({_name_of(encoding.kind) for encoding in encodings})
    source = GgufSource(files, encodings, used=files.entries, label=f"GGUF of {', '.join(kinds)}")
    source.header = header
    return source


def _find_files(location: Location) -> list[str]:
    """Return the single GGUF file of a model, or all of its shards."""
    files = location.matching("*.gguf")
    shards = [match for match in map(_SHARD.fullmatch, files) if match is not None]
    if len(files) == 1 and not shards:
        return files
    if len({(match[1], match[3]) for match in shards}) == 1 and len(shards) == len(files):
        if sorted(int(match[2]) for match in shards) == [*range(1, int(shards[0][3]) + 1)]:
            return files
        raise CheckpointError(
            f"{location.name} has {len(shards)} of {int(shards[0][3])} GGUF shards",
            hint="Name the directory with all shards.",
        )
    raise CheckpointError(
        f"{location.name} holds {len(files)} GGUF files: {', '.join(files[:4])}",
        hint="Name one of them: DIRECTORY/FILE.gguf",
    )


def _dtype_of(location: Location, files: GgufFiles) -> torch.dtype:
    """Return the dtype that a configuration names, or that of most values, if they are plain."""
    path = location.path / "config.json"
    if location.path.is_dir() and path.is_file():
        return read_dtype(read_config(path), location)
    counts: dict[torch.dtype | None, int] = {}
    for entry in files.entries.values():
        kind = _PLAIN.get(entry.kind)
        counts[kind] = counts.get(kind, 0) + math.prod(entry.shape)
    return max(counts, key=lambda kind: counts[kind], default=None) or torch.bfloat16


@cache
def _block_of(kind: int) -> tuple[int, int]:
    """Return the elements and the bytes of a block of a known type."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return elements, size


@cache
def describe_unreadable(kind: int) -> tuple[str, str] | None:
    """Return what to say of a type that the installed `gguf` does not dequantise, and a hint."""
    from gguf import GGMLQuantizationType

    try:
        name = _name_of(kind)
    except ValueError:
        newest = max(GGMLQuantizationType)
        return (
            f"has the GGUF type {kind}; the installed package gguf knows types up to {newest}",
            "Update it: pip install --upgrade gguf",
        )
    try:
        _dequantise(torch.zeros(_block_of(kind)[1], dtype=torch.uint8), kind)
    except NotImplementedError:
        return (
            f"has the GGUF type {name}, which the installed package gguf does not dequantise",
            "Name the model that the file was made from, or convert it to F32, F16, BF16 or Q8_0.",
        )
    return None


def _name_of(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kind).name


def _dequantise(octets: torch.Tensor, kind: int) -> torch.Tensor:
    """Return the values of some blocks in fp32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # the core reports weights that are not finite
        return torch.from_numpy(dequantize(octets.numpy(), GGMLQuantizationType(kind)))
