"""Exact selection by magnitude, without sorting.

The bits of a non-negative float, read as an integer, order as the floats do, so the k-th largest
magnitude can be found by counting. A sample says between which two values it should lie. One pass
over the weights counts the values above that window and tallies the values inside it. The counts
prove the guess right, or say on which side to go on. The result is exact, and memory does not grow
with the model.

Counting is written as arithmetic, because masks are slow: comparing into booleans costs five times
as much as adding, or as comparing into the operands' own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import shared_pass
from fusion_thresholds._tally import (
    BlockTally,
    Search,
    Tally,
    select_by_mask,
)
from fusion_thresholds.sampling import INTEGERS, Magnitudes, guess_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_core.weights import Piece, Scan

    Rows = Callable[[Piece], torch.Tensor]

#: Fewer values of a block than this are cheaper to pass on than to tally.
_UNTALLIED = 2**15


def task_vectors_of(piece: Piece) -> torch.Tensor:
    """Return a piece's task vectors: a function that can be pickled for workers."""
    return piece.task_vectors


def kth_largest_magnitudes(
    scan: Scan, k: int | Sequence[int], rows: Rows = task_vectors_of, *, count: int | None = None
) -> torch.Tensor:
    """Return each row's k-th largest magnitude over everything a scan sees.

    `rows(piece)`, by default the task vectors, returns fp32 or fp64 values of shape (count, ...),
    the same on every pass; `count` is by default the number of experts. 1 <= k <= `scan.numel`.
    The exact result has shape (count,) and the rows' dtype; for several k, shape (number of k,
    count). However many k there are, it takes one pass besides the sample, and more passes where
    the sample misled or the magnitudes lie far apart.
    """
    count = len(scan.operands.experts) if count is None else count
    key = (kth_largest_magnitudes, k, rows, count, scan.cut, scan.infos)
    return shared_pass(scan.operands, key, lambda: _kth_largest(scan, k, rows, count))


def _kth_largest(scan: Scan, k: int | Sequence[int], rows: Rows, count: int) -> torch.Tensor:
    dtype = magnitude_dtype(scan)
    ranks = [rank for rank in ([k] if isinstance(k, int) else k) for _ in range(count)]
    guesses = guess_windows(scan, ranks, rows, dtype)
    bits = find_largest(scan, ranks, rows, dtype, [guess.window for guess in guesses])
    keys = torch.tensor(bits, dtype=INTEGERS[dtype])
    return keys.view(dtype).reshape((count,) if isinstance(k, int) else (-1, count))


def magnitude_dtype(scan: Scan) -> torch.dtype:
    """Return the dtype of the magnitudes of everything that a scan sees."""
    dtypes = {scan.operands.dtype(info.name) for info in scan.infos}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def find_largest(
    scan: Scan, ranks: Sequence[int], rows: Rows, dtype: torch.dtype, searches: Sequence[Search]
) -> list[int]:
    """Narrow searches by passes over the weights; return the bits of each magnitude."""
    while any(search.bottom < search.top for search in searches):
        tallies = [Tally(search) for search in searches]
        tallies = scan.fold(WindowCount(rows, dtype, tuple(searches)), add_block, tallies)
        searches = [
            search.narrow(rank, tally)
            for search, rank, tally in zip(searches, ranks, tallies, strict=True)
        ]
    return [search.bottom for search in searches]


def add_block(tallies: list[Tally], blocks: list[BlockTally]) -> list[Tally]:
    """Add what one block holds to the tally of each search."""
    for tally, block in zip(tallies, blocks, strict=True):
        tally.add(block)
    return tallies


@dataclass(frozen=True)
class WindowCount:
    """Counts one block, every row in its own window; for several k, all rows once per k."""

    rows: Rows
    #: the dtype of the magnitudes whose bits are counted
    dtype: torch.dtype
    searches: tuple[Search, ...]

    @property
    def of_task_vectors(self) -> bool:
        """Whether it counts the magnitudes of task vectors."""
        return self.rows is task_vectors_of

    def tally(self, search: int, above: int, inside: int, offsets: torch.Tensor) -> BlockTally:
        """Return the tally of a block: how many values are above and inside the window of a search.

        `offsets` begins with those inside, as integers less the lower end of the window. They are
        not needed if the window has one value.
        """
        window = self.searches[search]
        if window.low == window.high:
            first = torch.zeros(1, dtype=torch.int64)
            return BlockTally(above, inside, first, torch.tensor([inside]))
        return _tally_bins(above, offsets[:inside] >> window.shift)

    def __call__(self, piece: Piece) -> list[BlockTally]:
        """Count one block: a tally per search."""
        keys = Magnitudes(self.rows, self.dtype)(piece)
        rows = zip(cycle(keys), range(len(self.searches)), strict=False)
        return [self._count(row, search) for row, search in rows]

    def _count(self, keys: torch.Tensor, search: int) -> BlockTally:
        window = self.searches[search]
        from_low = torch.ge(keys, window.low, out=torch.empty_like(keys))
        inside = torch.le(keys, window.high, out=torch.empty_like(keys)).mul_(from_low)
        count = _count_ones(inside)
        is_one = window.low == window.high
        offsets = keys if is_one else select_by_mask(keys, inside.bool()) - window.low
        return self.tally(search, _count_ones(from_low) - count, count, offsets)

    def join(self, blocks: Sequence[list[BlockTally]]) -> list[BlockTally]:
        """Add up what several blocks hold."""
        return [BlockTally.join(row) for row in zip(*blocks, strict=True)]


def _tally_bins(above: int, bins: torch.Tensor) -> BlockTally:
    if len(bins) < _UNTALLIED:
        return BlockTally(above, len(bins), bins)
    counts = torch.bincount(bins)
    occupied = counts.nonzero().squeeze(1)
    return BlockTally(above, len(bins), occupied, counts[occupied])


def _count_ones(ones: torch.Tensor) -> int:
    """Count ones among zeros, in their own dtype: a block's length fits into it."""
    return int(ones.sum(dtype=ones.dtype))
