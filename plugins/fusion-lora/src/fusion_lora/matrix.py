"""A matrix that is read a few rows at a time, and its products with thin matrices.

An embedding of a large vocabulary takes gigabytes in fp32. So no function here needs a whole
matrix: each reads blocks of rows. A smaller matrix is read once and kept. The limit is higher for a
merge, because reading a merge again means merging again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

#: The most elements of a merged matrix that is kept in memory: 256 MB in fp32.
HELD = 2**26
#: The same for a matrix in files, which are cheap to read again: 64 MB.
HELD_OF_FILES = 2**24
#: The elements in a block of rows.
_BLOCK = 2**22


class BlockedMatrix:
    """A matrix (height, width) in fp32, read by blocks of rows."""

    def __init__(
        self, height: int, width: int, read: Callable[[int, int], Tensor], *, held: int = HELD
    ) -> None:
        """`read` returns the rows [first, last) as a tensor (rows, width)."""
        self.height, self.width = height, width
        self._read = read
        self._whole: Tensor | None = None
        if height * width <= held:
            self._whole = torch.cat(
                [block for _, block in self.blocks()] or [torch.zeros(0, width)]
            )

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the blocks in order, each with its rows."""
        step = max(1, _BLOCK // max(self.width, 1))
        for first in range(0, self.height, step):
            rows = slice(first, min(first + step, self.height))
            if self._whole is not None:
                yield rows, self._whole[rows]
            else:
                yield rows, self._read(rows.start, rows.stop)

    def times(self, thin: Tensor) -> Tensor:
        """Multiply by a matrix (width, k)."""
        return torch.cat([block @ thin for _, block in self.blocks()])

    def transposed_times(self, thin: Tensor) -> Tensor:
        """Multiply the transposed matrix by a matrix (height, k)."""
        total = torch.zeros(self.width, thin.shape[1])
        for rows, block in self.blocks():
            total.addmm_(block.mT, thin[rows])
        return total

    def gram(self) -> Tensor:
        """Return the product of the transposed matrix and the matrix, in fp64."""
        total = torch.zeros(self.width, self.width, dtype=torch.float64)
        for _, block in self.blocks():
            wide = block.double()
            total.addmm_(wide.mT, wide)
        return total

    def squared_norm(self) -> float:
        """Return the sum of squared entries."""
        return sum(_squared_norm(block) for _, block in self.blocks())

    def squared_distance(self, left: Tensor, right: Tensor) -> float:
        """Return the squared distance from the product of (height, r) and (r, width)."""
        return sum(
            _squared_norm(torch.addmm(block, left[rows], right, alpha=-1))
            for rows, block in self.blocks()
        )

    @property
    def mT(self) -> BlockedMatrix:  # noqa: N802 - torch's name
        """The transposed matrix, kept in memory."""
        whole = torch.cat([block for _, block in self.blocks()]).mT.contiguous()
        return BlockedMatrix(self.width, self.height, lambda first, last: whole[first:last], held=0)


def _squared_norm(block: Tensor) -> float:
    return block.double().square_().sum().item()
