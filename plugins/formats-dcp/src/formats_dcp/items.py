"""The items of a `.distcp` file: each is a zip that `torch.save` wrote, with one tensor in it."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import TYPE_CHECKING, Any

from formats_dcp.metadata import DTYPES
from formats_dcp.pickles import Global, Record, UnsafePickleError, read_pickle
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from formats_dcp.metadata import Shard, Stored
    from fusion_core.weights import Header

#: The most bytes to read of an item to find its values: torch needs about 1,500.
_LARGEST = 2**17
#: Offset of the lengths of the name and the extra field in the header of a zip member, and the
#: size of that header.
_LENGTHS, _HEADER = 26, 30
_CONTIGUOUS = "Save it again with tensor.contiguous()."
_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.storage", "UntypedStorage"),
    ("collections", "OrderedDict"),
}


def find_values(header: Header, stored: Stored, shard: Shard, dtype: torch.dtype) -> int:
    """Return the byte of a `.distcp` file at which the values of a shard begin.

    Raises `CheckpointError` naming the file unless the item holds exactly the shard, contiguous and
    uncompressed.
    """
    where = f"{header.path}, item at byte {stored.offset}"
    if stored.offset + stored.length > header.size:
        raise CheckpointError(
            f"{where}: expected {stored.length} bytes, got "
            f"{max(header.size - stored.offset, 0)}: the file is truncated",
            hint="Copy the checkpoint again.",
        )
    item = _Item(header, stored)
    try:
        with zipfile.ZipFile(item) as archive:
            members = {member.filename: member for member in archive.infolist()}
            pickled = next(name for name in members if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            tensor = _describe(_read_member(archive, members[pickled]))
            order = members.get(f"{root}byteorder")
            is_little = order is None or _read_member(archive, order) == b"little"
            values = members[f"{root}data/{tensor['key']}"]
    except (zipfile.BadZipFile, NotImplementedError, StopIteration, struct.error, OSError) as error:
        raise CheckpointError(
            f"{where}: expected a tensor that torch.save wrote: {error}"
        ) from error
    except UnsafePickleError as error:
        raise CheckpointError(
            f"{where}: expected a tensor, got a pickle that is refused: {error}"
        ) from error
    if not is_little or values.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{where}: compressed or big-endian values are not supported")
    _check(where, tensor, shard, dtype, values.file_size)
    item.seek(values.header_offset + _LENGTHS)
    name_length, extra_length = struct.unpack("<HH", item.read(4))
    names = int(name_length) + int(extra_length)
    begin = values.header_offset + _HEADER + names
    if begin + values.file_size > stored.length:
        raise CheckpointError(f"{where}: its values end after the item")
    return stored.offset + begin


def _check(
    where: str, tensor: dict[str, Any], shard: Shard, dtype: torch.dtype, nbytes: int
) -> None:
    """Raise `CheckpointError` unless a stored tensor is the shard that the metadata describes."""
    expected: list[int] = []
    count = 1
    for size in reversed(shard.sizes):
        expected.insert(0, count)
        count *= size
    if (tensor["dtype"], tensor["shape"]) != (dtype, shard.sizes):
        raise CheckpointError(
            f"{where}: expected {dtype} of shape {list(shard.sizes)}, as .metadata says, got "
            f"{tensor['dtype']} of shape {list(tensor['shape'])}"
        )
    strides = tensor["strides"]
    is_dense = not count or all(
        size <= 1 or stride == step
        for size, stride, step in zip(shard.sizes, strides, expected, strict=True)
    )
    if tensor["offset"] or not is_dense or nbytes != count * dtype.itemsize:
        raise CheckpointError(
            f"{where}: the tensor of shape {list(shard.sizes)} is not in row-major order: its "
            f"strides are {list(strides)}",
            hint=_CONTIGUOUS,
        )


def _describe(pickled: bytes) -> dict[str, Any]:
    """Return the key, dtype, shape, strides and offset of the tensor in a `data.pkl`."""
    tensor = read_pickle(pickled, _is_allowed, {"OrderedDict": lambda _arguments: {}})
    if isinstance(tensor, Record) and tensor.kind.name == "_rebuild_parameter":
        tensor = tensor.arguments[0]
    if not isinstance(tensor, Record) or not tensor.kind.name.startswith("_rebuild_tensor_v"):
        raise UnsafePickleError("it does not hold a tensor")
    storage, offset, shape, strides, *more = tensor.arguments
    _, kind, key, _, _ = storage.arguments
    dtype = more[2].name if tensor.kind.name.endswith("v3") else _STORAGES[kind.name]
    numbers = {"shape": shape, "strides": strides, "offset": offset}
    return {"key": str(key), "dtype": DTYPES[dtype], **numbers}


def _is_allowed(named: Global) -> bool:
    if named.module == "torch":
        return named.name in DTYPES or named.name in _STORAGES
    return (named.module, named.name) in _FUNCTIONS


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{member.filename} is compressed")
    return archive.read(member)


class _Item(io.RawIOBase):
    """An item of a file as a stream, of which a limited number of bytes may be read."""

    def __init__(self, header: Header, stored: Stored) -> None:
        self._header, self._stored = header, stored
        self._position, self._remaining = 0, _LARGEST

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stored.length}
        if start[whence] + offset < 0:
            raise OSError("it has no central directory")
        self._position = start[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        rest = max(self._stored.length - self._position, 0)
        count = rest if size < 0 else min(size, rest)
        if count > self._remaining:
            raise OSError("its header is too large")
        self._header.seek(self._stored.offset + self._position)
        content = self._header.read(count)
        self._position += len(content)
        self._remaining -= len(content)
        return content
