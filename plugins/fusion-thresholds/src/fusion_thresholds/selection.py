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

import math
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Cut, call_on_piece, shared_pass
from fusion_thresholds._tally import (
    BlockTally,
    Search,
    Tally,
    kth_largest,
    select_by_mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_core.weights import Piece, Scan

    Rows = Callable[[Piece], torch.Tensor]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
#: A guess is made from this many elements per expert, or from one in so many if these are fewer.
_SAMPLE, _SAMPLED = 2**19, 32
#: Fewer elements than this are tallied without a guess.
_WORTH_A_GUESS = 2**16
#: Half the width of a guess, in standard deviations of the sample's quantile.
_MARGIN = 4
#: Runs count as samples of single entries if they deviate by at most this factor more.
_ALIKE = 1.25
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
    keys = torch.tensor(bits, dtype=_INTEGERS[dtype])
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
        keys = _Magnitudes(self.rows, self.dtype)(piece)
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


@dataclass(frozen=True)
class Guess:
    """The window in which a magnitude should lie, and the fraction of all that lie there too."""

    window: Search
    share: float


def guess_windows(scan: Scan, ranks: Sequence[int], rows: Rows, dtype: torch.dtype) -> list[Guess]:
    """Guess the windows from a sample.

    Of few elements, and of tensors that cannot be cut, the window is the whole range.
    """
    top = int(torch.iinfo(_INTEGERS[dtype]).max)
    if scan.numel < _WORTH_A_GUESS or scan.cut is Cut.TENSOR:
        return [Guess(Search(0, top, 0, top), 1.0)] * len(ranks)
    sample = scan.sample(min(_SAMPLE, scan.numel // _SAMPLED))
    empty: list[torch.Tensor] = []
    read = sum(stop - start for _, (start, stop) in sample.blocks)
    stride = read // _SAMPLE | 1  # odd, to meet every column of a matrix
    runs = sample.fold(_Magnitudes(rows, dtype, stride), lambda runs, run: [*runs, run], empty)
    ends = torch.tensor([run.shape[1] for run in runs]).cumsum(0)
    pairs = zip(cycle(torch.cat(runs, dim=1)), ranks, strict=False)
    return [_guess(row, ends, rank / scan.numel, top) for row, rank in pairs]


@dataclass(frozen=True)
class _Magnitudes:
    """The magnitudes of a block, or some of them, as integers of shape (count, elements)."""

    rows: Rows
    dtype: torch.dtype
    stride: int = 1

    def __call__(self, piece: Piece) -> torch.Tensor:
        # Counting is done on the CPU: copy the values of a GPU back once.
        rows = call_on_piece(self.rows, piece).unsqueeze(-1).flatten(1)[:, :: self.stride]
        magnitudes = rows.to(self.dtype).cpu().abs()
        return magnitudes.view(_INTEGERS[self.dtype])

    def join(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put blocks side by side."""
        return torch.cat(list(blocks), dim=1)


def _guess(sample: torch.Tensor, ends: torch.Tensor, fraction: float, top: int) -> Guess:
    """Return a window around a sample's quantile, `fraction` of the way down from the largest.

    The sample consists of runs, which end at `ends`. Neighbours in a tensor are alike, so a sample
    of few runs is less certain than one of as many single entries.
    """
    alone = math.sqrt(len(sample) * fraction * (1 - fraction))
    low, high = _window(sample, fraction, alone, top)
    from_low = sample >= low
    deviation = _deviation(from_low, ends)
    if deviation > _ALIKE * alone:
        low, high = _window(sample, fraction, deviation, top)
        from_low = sample >= low
    inside = from_low.count_nonzero() - (sample > high).count_nonzero()
    return Guess(Search(0, top, low, high), int(inside) / len(sample))


def _window(sample: torch.Tensor, fraction: float, deviation: float, top: int) -> tuple[int, int]:
    """Return a window that the quantile leaves only if its rank is off by many deviations."""
    rank, margin = fraction * len(sample), _MARGIN * deviation + _MARGIN
    above, below = int(rank - margin), math.ceil(rank + margin)
    high = top if above < 1 else kth_largest(sample, above, top)
    low = 0 if below > len(sample) else kth_largest(sample, below, top)
    return low, high


def _deviation(hits: torch.Tensor, ends: torch.Tensor) -> float:
    """Return the standard deviation of the number of hits in a sample of runs.

    It is estimated from differences between neighbouring runs, so that it leaves out how layers
    differ: the sample has runs from all of them.
    """
    counts = hits.cumsum(0, dtype=torch.int32)[ends - 1].double().diff(prepend=torch.zeros(1))
    lengths = ends.double().diff(prepend=torch.zeros(1))
    excess = counts - lengths * (counts.sum() / len(hits))
    return math.sqrt(float(excess.diff().square().sum()) / 2)
