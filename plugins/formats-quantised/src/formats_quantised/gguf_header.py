"""The header of a GGUF file: its metadata and the tensors that it describes.

The `gguf` package maps a whole file and makes an array per field. This parser reads the header
alone, within the limits for untrusted files, and skips long arrays and texts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.weights import Header

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_TENSORS = _MOST_FIELDS = 2**16
_MOST_DIMENSIONS = 4
_LONGEST_TEXT = 2**16
#: Arrays of numbers up to this length are kept: they hold a number per layer.
_LONGEST_ARRAY = 2**10
#: Codes of types of metadata, with their formats.
_NUMBERS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
#: Bytes that are read at a time: as many as before, within these limits.
_CHUNK, _LARGEST_CHUNK = 2**16, 2**20

Value = int | float | bool | str | tuple[int | float | bool, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that a header describes."""

    name: str
    #: sizes in the order of torch: the last one is that of consecutive elements
    shape: tuple[int, ...]
    #: the number of a quantisation type
    kind: int
    #: position after the header
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata by key, without long arrays, and tensors."""

    fields: dict[str, Value]
    entries: list[Entry]
    #: the position of the first tensor's values
    start: int


def parse_gguf(stream: Header) -> GgufHeader:
    """Parse the header of a GGUF file.

    Raises `CheckpointError` for other files, and `ValueError`, `KeyError` or `struct.error` for
    malformed ones.
    """
    cursor = _Cursor(stream)
    magic, version = cursor.take(4), cursor.number("I")
    if magic != _MAGIC or version not in _VERSIONS:
        raise CheckpointError(
            f"{stream.path}: expected a GGUF file of version 2 or 3, in little-endian order",
            hint="Convert the model again with a current llama.cpp.",
        )
    tensors, fields = cursor.number("Q"), cursor.number("Q")
    if tensors > _MOST_TENSORS or fields > _MOST_FIELDS:
        raise ValueError(f"{tensors} tensors and {fields} fields")
    metadata: dict[str, Value] = {}
    for _ in range(int(fields)):
        key, value = cursor.text(), cursor.value()
        if key in metadata:
            raise ValueError(f"field {key!r} is repeated")
        if value is not None:
            metadata[key] = value
    entries = [_read_entry(cursor) for _ in range(int(tensors))]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"alignment {alignment}")
    return GgufHeader(metadata, entries, -(-cursor.position // alignment) * alignment)


def _read_entry(cursor: _Cursor) -> Entry:
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
    sizes = tuple(int(cursor.number("Q")) for _ in range(int(dimensions)))
    kind, offset = int(cursor.number("I")), int(cursor.number("Q"))
    return Entry(name, sizes[::-1], kind, offset)


class _Cursor:
    """A position in a header, which is read in chunks as far as needed."""

    def __init__(self, stream: Header) -> None:
        self.position = 0
        self._stream = stream
        self._content = b""

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.position + count
        self._load(end)
        content = self._content[self.position : end]
        self.position = end
        return content

    def number(self, code: str) -> int | float | bool:
        """Return the next number of a type of `struct`."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        number: int | float | bool = value
        return number

    def text(self) -> str:
        """Return the next text."""
        length = int(self.number("Q"))
        if length > _LONGEST_TEXT:
            self._skip(length)
            return ""
        return self.take(length).decode("utf-8")

    def value(self) -> Value | None:
        """Return the next value of metadata; None for an array of texts, or a long one."""
        kind = int(self.number("I"))
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        kind, count = int(self.number("I")), int(self.number("Q"))
        if kind == _TEXT:
            self._skip_texts(count)
        elif count <= _LONGEST_ARRAY:
            return tuple(self.number(_NUMBERS[kind]) for _ in range(count))
        else:
            self._skip(count * struct.calcsize("<" + _NUMBERS[kind]))
        return None

    def _skip(self, count: int) -> None:
        self._load(self.position + count)
        self.position += count

    def _skip_texts(self, count: int) -> None:
        """Skip texts, of which a vocabulary has hundreds of thousands."""
        unpack: Callable[[bytes, int], tuple[int]] = struct.Struct("<Q").unpack_from
        if count > self._stream.size:
            raise ValueError(f"{count} texts")
        position = self.position
        for _ in range(count):
            if position + 8 > len(self._content):
                self._load(position + 8)
            position += 8 + unpack(self._content, position)[0]
        self._load(position)
        self.position = position

    def _load(self, end: int) -> None:
        """Read on, up to a position or more."""
        if end > self._stream.size:
            raise ValueError("the file ends inside its header")
        if end > len(self._content):
            usual = max(_CHUNK, min(len(self._content), _LARGEST_CHUNK))
            wanted = max(end - len(self._content), usual)
            self._content += self._stream.read(min(wanted, self._stream.size - len(self._content)))
