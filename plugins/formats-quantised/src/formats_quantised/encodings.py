"""How a tensor is computed from stored tensors, a range at a time.

An `Encoding` describes one tensor of the model. Encodings are immutable, hold no values, and may be
read by several threads.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core import TensorInfo
    from fusion_core.weights import WeightSource

#: The most elements of a band of rows that is decoded at once.
_BAND = 2**22
#: The number of decoded bands that a source keeps: workers are in one band or the next.
_KEPT_BANDS = 2


@dataclass(frozen=True, slots=True)
class Rectangle:
    """The rows [top, bottom) and columns [left, right) of a matrix."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> tuple[int, int]:
        """The first row, and the last one plus one."""
        return self.top, self.bottom

    @property
    def columns(self) -> tuple[int, int]:
        """The first column, and the last one plus one."""
        return self.left, self.right


@dataclass(frozen=True)
class Encoding(ABC):
    """One tensor of a model, in terms of the tensors that are stored."""

    info: TensorInfo

    @abstractmethod
    def read(self, stored: WeightSource, start: int, stop: int, cache: BandCache) -> torch.Tensor:
        """Return the elements [start, stop) in row-major order, flat, in the dtype of `info`."""


@dataclass(frozen=True)
class RowEncoding(Encoding):
    """A tensor whose rows are stored one after the other, seen as a matrix of its last axis."""

    @property
    def width(self) -> int:
        """The length of a row."""
        return self.info.shape[-1] if self.info.shape else 1

    def read(self, stored: WeightSource, start: int, stop: int, cache: BandCache) -> torch.Tensor:
        """Decode the part of a first row, whole rows, and the part of a last row."""
        del cache
        parts = [
            self.read_rectangle(stored, rectangle).reshape(-1).to(self.info.dtype)
            for rectangle in _rectangles(start, stop, self.width)
        ]
        if not parts:
            return torch.empty(0, dtype=self.info.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @abstractmethod
    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Decode whole rows, or a part of one row."""


@dataclass(frozen=True)
class BandEncoding(Encoding):
    """A tensor that is stored transposed, decoded in bands of rows of which a source keeps some.

    The tensor is a batch of matrices: all axes but the last two are the batch.
    """

    @property
    @abstractmethod
    def unit(self) -> int:
        """The number of rows that are decoded together: a band begins at a multiple of it."""

    @abstractmethod
    def read_band(self, stored: WeightSource, entry: int, first: int, last: int) -> torch.Tensor:
        """Decode the rows [first, last) of an entry of the batch, in the dtype of `info`."""

    def read(self, stored: WeightSource, start: int, stop: int, cache: BandCache) -> torch.Tensor:
        """Decode the bands that a range touches."""
        *_, rows, width = self.info.shape
        parts: list[torch.Tensor] = []
        while start < stop:
            entry, row = divmod(start // width, rows)
            first, last = self._band(row)
            offset = (entry * rows + first) * width
            end = min(stop, (entry * rows + last) * width)
            values = cache.get(stored, self, (entry, first, last))
            parts.append(values[start - offset : end - offset])
            start = end
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.info.dtype)

    @property
    def kept_bytes(self) -> int:
        """The most bytes of the bands that are kept."""
        *_, width = self.info.shape
        return _KEPT_BANDS * self._rows_of_band() * width * self.info.dtype.itemsize

    def _band(self, row: int) -> tuple[int, int]:
        """Return the rows of the band that a row lies in."""
        step = self._rows_of_band()
        first = row // step * step
        return first, min(first + step, self.info.shape[-2])

    def _rows_of_band(self) -> int:
        *_, rows, width = self.info.shape
        return min(max(1, _BAND // (width * self.unit)) * self.unit, rows)


class BandCache:
    """The bands that any thread decoded last. Pickling drops them."""

    def __init__(self) -> None:
        self._bands: OrderedDict[tuple[str, tuple[int, int, int]], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, stored: WeightSource, encoding: BandEncoding, band: tuple[int, int, int]
    ) -> torch.Tensor:
        """Return the values of a band, flat: its entry of the batch, first and last row."""
        key = (encoding.info.name, band)
        with self._lock:
            if key not in self._bands:
                while len(self._bands) >= _KEPT_BANDS:
                    self._bands.popitem(last=False)
                self._bands[key] = encoding.read_band(stored, *band).reshape(-1)
            return self._bands[key]

    def __reduce__(self) -> tuple[type[BandCache], tuple[()]]:
        return BandCache, ()


def read_columns(
    stored: WeightSource,
    name: str,
    rows: tuple[int, int],
    columns: tuple[int, int],
    width: int,
) -> torch.Tensor:
    """Read some columns of some rows of a stored tensor, seen as a matrix of some width.

    Whole rows, and a part of one row, are read at once.
    """
    (top, bottom), (left, right) = rows, columns
    if right - left == width or bottom - top == 1:
        values = stored.read(name, top * width + left, (bottom - 1) * width + right)
        return values.view(bottom - top, right - left)
    parts = (stored.read(name, row * width + left, row * width + right) for row in range(*rows))
    return torch.stack(tuple(parts))


def unpack_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Split bytes into codes of 2, 4 or 8 bits, the lowest bits first, along the last axis.

    Integers of several bytes are taken in little-endian order. Returns uint8.
    """
    is_dense = packed.stride(-1) == 1  # `contiguous` does not see the strides of short axes
    packed = packed if is_dense else packed.clone(memory_format=torch.contiguous_format)
    octets = packed.view(torch.uint8)
    if bits == 8:  # noqa: PLR2004 - a byte
        return octets
    mask = (1 << bits) - 1
    codes = [octets.bitwise_right_shift(shift).bitwise_and_(mask) for shift in range(0, 8, bits)]
    return torch.stack(codes, dim=-1).flatten(-2)


def _rectangles(start: int, stop: int, width: int) -> Iterator[Rectangle]:
    """Cut a range of a matrix into the rest of a row, whole rows, and the beginning of a row."""
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            end = min(stop, (row + 1) * width)
            yield Rectangle(row, row + 1, column, column + end - start)
        else:
            end = stop // width * width
            yield Rectangle(row, end // width, 0, width)
        start = end
