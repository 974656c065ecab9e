"""Scales and zero points of the blocks of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from formats_quantised.encodings import read_columns

if TYPE_CHECKING:
    from formats_quantised.encodings import Rectangle
    from fusion_core.weights import WeightSource


_LARGEST_SIDE = 2**31


def is_side(size: Any) -> bool:  # noqa: ANN401 - JSON
    """Tell whether a number from a configuration can be the height or width of a block."""
    return type(size) is int and 1 <= size <= _LARGEST_SIDE


@dataclass(frozen=True, slots=True)
class Grid:
    """A stored tensor with one value per block of a batch of matrices.

    The matrices lie one below the other, `rows` rows each. Every matrix has `shape` blocks of
    `block` elements; the last block of a row or column may be cut.
    """

    name: str
    shape: tuple[int, int]
    block: tuple[int, int]
    rows: int

    def read(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Return the values of the blocks that a part touches, as rows of blocks.

        The part consists of whole rows, or lies in one row.
        """
        rows, columns = self._rows(part), self.columns(part)
        return read_columns(stored, self.name, rows, columns, self.shape[1])

    def expand(self, values: torch.Tensor, part: Rectangle) -> torch.Tensor:
        """Repeat the values of blocks so that they broadcast with the elements of the part."""
        if self.shape[1] > 1:
            rows, columns = values.shape
            offset = part.left - self.columns(part)[0] * self.block[1]
            repeated = values.unsqueeze(-1).expand(rows, columns, self.block[1])
            values = repeated.reshape(rows, -1)[:, offset : offset + part.right - part.left]
        if len(values) == 1:
            return values
        index = self._row_of(torch.arange(part.top, part.bottom))
        return values[index - index[0]]

    def _row_of(self, row: torch.Tensor) -> torch.Tensor:
        """Return the row of blocks that each row of elements lies in."""
        return row // self.rows * self.shape[0] + row % self.rows // self.block[0]

    def _rows(self, part: Rectangle) -> tuple[int, int]:
        first, last = self._row_of(torch.tensor([part.top, part.bottom - 1])).tolist()
        return first, last + 1

    def columns(self, part: Rectangle) -> tuple[int, int]:
        """Return the first column of blocks that a part touches, and the last one plus one."""
        return part.left // self.block[1], -(-part.right // self.block[1])
