"""The safetensors format: headers and indices of untrusted files.

The parser is stricter than the safetensors library. A header has at most 25 MB and describes at
most some 50,000 tensors, names are unique and printable, and every byte of the data belongs to
exactly one tensor. The library accepts whatever this module accepts, with the same content.
"""

from __future__ import annotations

import json
import struct
from operator import itemgetter
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from fusion_core.errors import CheckpointError, WeightsError
from fusion_core.weights.reading._unsupported import DEQUANTISE
from fusion_core.weights.reading.header import (
    Header,
    StoredTensor,
    is_valid_name,
    is_valid_shape,
    without_garbage_collection,
)
from fusion_core.weights.reading.untrusted_json import (
    HEADER_VARIABLE,
    is_string_map,
    largest_header,
    parse_json,
)
from fusion_core.weights.source import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Bytes of an index or a configuration.
LARGEST_INDEX = 10 * 2**20
_FIELDS = {"dtype", "shape", "data_offsets"}
#: The first bytes of the text that stands for a file in a repository of Git LFS.
_LFS_POINTER = b"version "

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: Prefixes of dtypes with 4 to 8 bits, which torch does not compute with, and of their scales.
_PACKED_DTYPES = ("F4", "F6", "F8", "I4", "U4")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@without_garbage_collection()
def parse_header(
    stream: BinaryIO | Header, size: int, file: str, *, path: str
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Parse and check the header of a safetensors file of `size` bytes.

    Returns its tensors, in the order of their offsets, and its metadata. Raises `CheckpointError`
    naming `path` for anything but a complete, well-formed file.
    """
    prefix = stream.read(8)
    if len(prefix) < 8:  # noqa: PLR2004 - the length of the length
        raise CheckpointError(
            f"{path}: expected a safetensors file of at least 8 bytes, got {size} bytes"
        )
    (length,) = struct.unpack("<Q", prefix)
    if prefix == _LFS_POINTER:
        raise CheckpointError(
            f"{path}: a pointer of Git LFS, not the file itself",
            hint="Fetch the files in its repository: git lfs pull",
        )
    if length > size - 8:
        raise CheckpointError(
            f"{path}: the header claims {length} bytes of a file of {size}",
            hint="The file is truncated or of another format; download or save it again.",
        )
    if length > largest_header():
        raise CheckpointError(
            f"{path}: the header claims {length} bytes, more than {largest_header()}",
            hint=f"If you trust the file, set {HEADER_VARIABLE} to at least that many bytes.",
        )
    text = stream.read(length)
    if text[:1] != b"{" or text.rstrip(b" ")[-1:] != b"}":
        raise CheckpointError(f"{path}: the header is not a JSON object padded with spaces")
    header = parse_json(text, path=path)
    metadata = header.pop("__metadata__", {})
    if not is_string_map(metadata):
        raise CheckpointError(f"{path}: __metadata__ does not map strings to strings")
    spans = sorted(
        (_parse_entry(name, entry, path) for name, entry in header.items()), key=itemgetter(1, 2)
    )
    _check_contiguous(spans, size - 8 - length, path)
    tensors = {info.name: StoredTensor(file, info, 8 + length + start) for info, start, _ in spans}
    return tensors, metadata


@without_garbage_collection()
def parse_index(text: bytes, *, path: str) -> dict[str, str]:
    """Parse and check `model.safetensors.index.json`; return tensor name -> plain file name."""
    weight_map = parse_json(text, path=path).get("weight_map")
    if not is_string_map(weight_map) or not weight_map:
        raise CheckpointError(f"{path}: weight_map does not map tensor names to files")
    for file in set(weight_map.values()):
        if not is_valid_name(file) or "/" in file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {shorten(file)} is not a plain .safetensors file name")
    return dict(weight_map)


def build_header(infos: Iterable[TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """Lay tensors out one after the other; return length prefix with header, and data size.

    The header is padded with spaces to a multiple of 8 bytes, as in the library, so that tensors
    stay aligned.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for info in infos:
        if info.dtype not in DTYPE_NAMES:
            raise WeightsError(f"tensor {info.name!r}: safetensors files do not hold {info.dtype}")
        start, end = end, end + info.nbytes
        header[info.name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def _parse_entry(name: str, entry: object, path: str) -> tuple[TensorInfo, int, int]:
    """Check one tensor's entry; return its description and offsets."""
    if not is_valid_name(name):
        raise CheckpointError(
            f"{path}: tensor name {name[:80]!r} is empty, too long or unprintable"
        )
    label = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise CheckpointError(f"{label} is not described by dtype, shape, offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        message = f"{label} has the unknown dtype {shorten(dtype)}"
        if str(dtype).startswith(_PACKED_DTYPES):
            message = f"{message}: the checkpoint is quantised"
            raise CheckpointError(message, hint=DEQUANTISE)
        raise CheckpointError(message)
    if not isinstance(shape, list) or not is_valid_shape(shape):
        raise CheckpointError(f"{label} has the impossible shape {shorten(shape)}")
    if not isinstance(offsets, list) or [*map(type, offsets)] != [int, int]:
        raise CheckpointError(f"{label} has the impossible offsets {shorten(offsets)}")
    info = TensorInfo(name, tuple(shape), DTYPES[dtype])
    start, end = offsets
    if end - start != info.nbytes:
        raise CheckpointError(
            f"{label} of shape {shape} and dtype {dtype} does not fit the offsets {offsets}"
        )
    return info, start, end


def _check_contiguous(spans: list[tuple[TensorInfo, int, int]], size: int, path: str) -> None:
    end = 0
    for info, start, stop in spans:
        if start != end:
            raise CheckpointError(f"{path}: tensor {info.name!r} starts at {start}, expected {end}")
        end = stop
    if end != size:
        raise CheckpointError(
            f"{path}: tensors take {end} bytes, but the file holds {size}",
            hint="The file is truncated or has been appended to; download or save it again.",
        )
