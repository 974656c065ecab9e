"""Exact selection by magnitude, without sorting.

The bits of a non-negative float, read as an integer, order as the floats do. So the k-th largest
magnitude is found by counting: a sample says between which two values it should lie, one pass over
the weights counts what is above them and tallies what is between, and the counts prove the guess
right or say on which side to go on. Exact, in memory that does not grow with the model.

Masks are slow: comparing into booleans costs five times as much as adding, or as comparing into the
operands' own dtype. So counting is written as arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging._tally import Part, Search, Tally, kth_largest, picked
from fusion_core.weights.merging.shared import shared_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_core.weights.merging.piece import Piece
    from fusion_core.weights.merging.scan import Scan

    Rows = Callable[[Piece], torch.Tensor]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
#: Elements an expert that a guess is made from, at most, and at most which part of all.
_SAMPLE, _SAMPLED = 2**19, 32
#: Fewer elements than this are tallied without a guess.
_WORTH_A_GUESS = 2**16
#: How far from a sample's quantile, in its standard deviations, the true one is looked for.
_MARGIN = 4
#: So many values of a block are cheaper to pass on than to tally.
_UNTALLIED = 2**15


def task_vectors_of(piece: Piece) -> torch.Tensor:
    """Return a piece's task vectors, in workers too: a function that can be pickled."""
    return piece.task_vectors


def kth_largest_magnitudes(
    scan: Scan, k: int | Sequence[int], rows: Rows = task_vectors_of, *, count: int | None = None
) -> torch.Tensor:
    """Return each row's k-th largest magnitude over everything a scan sees.

    `rows(piece)`, by default the task vectors, gives fp32 or fp64 values of shape (count, ...), the
    same on every pass; `count` is by default that of the experts. 1 <= k <= `scan.numel`. The
    result has shape (count,) and the rows' dtype; it is exact. For several k it has shape (k's,
    count). Takes one pass beyond the sample, however many k there are, more where the sample misled
    or the magnitudes lie far apart.
    """
    count = len(scan.operands.experts) if count is None else count
    said = (kth_largest_magnitudes, k, rows, count, scan.cut, scan.infos)
    return shared_pass(scan.operands, said, lambda: _kth_largest(scan, k, rows, count))


def _kth_largest(scan: Scan, k: int | Sequence[int], rows: Rows, count: int) -> torch.Tensor:
    dtype = _widest(scan)
    ranks = [each for each in ([k] if isinstance(k, int) else k) for _ in range(count)]
    searches = _guesses(scan, ranks, rows, dtype)
    while any(search.bottom < search.top for search in searches):
        tallies = [Tally(search) for search in searches]
        tallies = scan.fold(_Count(rows, dtype, tuple(searches)), _added, tallies)
        narrowed = zip(searches, ranks, tallies, strict=True)
        searches = [each.narrowed(rank, tally) for each, rank, tally in narrowed]
    found = torch.tensor([search.bottom for search in searches], dtype=_INTEGERS[dtype])
    return found.view(dtype).reshape((count,) if isinstance(k, int) else (-1, count))


def _added(tallies: list[Tally], parts: list[Part]) -> list[Tally]:
    for tally, part in zip(tallies, parts, strict=True):
        tally.add(part)
    return tallies


@dataclass(frozen=True)
class _Count:
    """Counts one block, every row in windows of its own: all rows in turns, once a k."""

    rows: Rows
    dtype: torch.dtype
    searches: tuple[Search, ...]

    def __call__(self, piece: Piece) -> list[Part]:
        keys = _Magnitudes(self.rows, self.dtype)(piece)
        pairs = zip(cycle(keys), self.searches, strict=False)
        return [_count(row, search) for row, search in pairs]

    def join(self, parts: Sequence[list[Part]]) -> list[Part]:
        """Add up what several blocks hold."""
        return [Part.joined(each) for each in zip(*parts, strict=True)]


def _count(keys: torch.Tensor, search: Search) -> Part:
    from_low = torch.ge(keys, search.low, out=torch.empty_like(keys))
    inside = torch.le(keys, search.high, out=torch.empty_like(keys)).mul_(from_low)
    above = _total(from_low)
    if search.low == search.high:
        count = _total(inside)
        return Part(above - count, count, torch.zeros(1, dtype=torch.int64), torch.tensor([count]))
    bins = (picked(keys, inside.bool()) - search.low) >> search.shift
    return Part(above - len(bins), len(bins), *_tallied(bins))


def _total(ones: torch.Tensor) -> int:
    """Count ones among zeros; they fit into their own dtype, which a block's length does."""
    return int(ones.sum(dtype=ones.dtype))


def _tallied(bins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return bins and how often each occurs; a few as they are, the same one perhaps twice."""
    if len(bins) < _UNTALLIED:
        return bins, None
    counts = torch.bincount(bins)
    found = counts.nonzero().squeeze(1)
    return found, counts[found]


def _guesses(scan: Scan, ranks: Sequence[int], rows: Rows, dtype: torch.dtype) -> list[Search]:
    """Guess from a sample where to look; from the whole range where there is too little."""
    top = int(torch.iinfo(_INTEGERS[dtype]).max)
    everywhere = [Search(0, top, 0, top)] * len(ranks)
    if scan.numel < _WORTH_A_GUESS:
        return everywhere
    sample = scan.sample(min(_SAMPLE, scan.numel // _SAMPLED))
    parts: list[torch.Tensor] = sample.fold(_Magnitudes(rows, dtype), _appended, [])
    pairs = zip(cycle(torch.cat(parts, dim=1)), ranks, strict=False)
    return [_guess(row, rank / scan.numel, top) for row, rank in pairs]


@dataclass(frozen=True)
class _Magnitudes:
    """The magnitudes of a block themselves, as integers, of shape (experts, elements)."""

    rows: Rows
    dtype: torch.dtype

    def __call__(self, piece: Piece) -> torch.Tensor:
        # On the CPU, where it is counted: what a GPU holds of a row is copied back once.
        magnitudes = self.rows(piece).to(self.dtype).cpu().abs().unsqueeze(-1).flatten(1)
        return magnitudes.view(_INTEGERS[self.dtype])

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put blocks side by side."""
        return torch.cat(list(parts), dim=1)


def _appended(parts: list[torch.Tensor], part: torch.Tensor) -> list[torch.Tensor]:
    return [*parts, part]


def _guess(sample: torch.Tensor, fraction: float, top: int) -> Search:
    """Look around a sample's quantile, `fraction` of the way down from the largest."""
    rank = fraction * len(sample)
    margin = _MARGIN * math.sqrt(rank * (1 - fraction)) + _MARGIN
    above, below = int(rank - margin), math.ceil(rank + margin)
    high = top if above < 1 else kth_largest(sample, above, top)
    low = 0 if below > len(sample) else kth_largest(sample, below, top)
    return Search(0, top, low, high)


def _widest(scan: Scan) -> torch.dtype:
    dtypes = {scan.operands.dtype(info.name) for info in scan.infos}
    return torch.float64 if torch.float64 in dtypes else torch.float32
