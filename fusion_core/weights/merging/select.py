"""Exact selection by magnitude, without sorting, and sign election: kernels that methods share.

The bits of a non-negative float, read as an integer, order as the floats do. So the k-th largest
magnitude is found by counting: a sample says between which two values it should lie, one pass over
the weights counts what is above them and tallies what is between, and the counts prove the guess
right or say on which side to go on. Exact, in memory that does not grow with the model.

Masks are slow: comparing into booleans costs five times as much as adding, or as comparing into the
operands' own dtype. So trimming and election are written as arithmetic, and counting, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging._tally import Part, Search, Tally
from fusion_core.weights.merging.piece import in_order

if TYPE_CHECKING:
    from collections.abc import Callable

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


def kept_count(density: float, numel: int) -> int:
    """Return how many of `numel` entries a density keeps: max(1, floor(density * n)), 0 for 0."""
    return 0 if density == 0 else max(1, int(density * numel))


def kth_largest_magnitudes(scan: Scan, k: int, rows: Rows) -> torch.Tensor:
    """Return each expert's k-th largest magnitude over everything a scan sees.

    `rows(piece)` gives fp32 or fp64 values of shape (experts, ...), the same on every pass. 1 <= k
    <= `scan.numel`. The result has shape (experts,) and the rows' dtype; it is exact. Takes one
    pass beyond the sample, more where the sample misled or the magnitudes lie far apart.
    """
    dtype = _widest(scan)
    searches = _guesses(scan, k, rows, dtype)
    while any(each.bottom < each.top for each in searches):
        tallies = [Tally(each) for each in searches]
        tallies = scan(_Count(rows, dtype, tuple(searches)), _added, tallies)
        searches = [each.narrowed(k, tally) for each, tally in zip(searches, tallies, strict=True)]
    found = torch.tensor([each.bottom for each in searches], dtype=_INTEGERS[dtype])
    return found.view(dtype)


def _added(tallies: list[Tally], parts: list[Part]) -> list[Tally]:
    for tally, part in zip(tallies, parts, strict=True):
        tally.add(part)
    return tallies


@dataclass(frozen=True)
class _Count:
    """Counts one block, every expert in its own window."""

    rows: Rows
    dtype: torch.dtype
    searches: tuple[Search, ...]

    def __call__(self, piece: Piece) -> list[Part]:
        keys = _Magnitudes(self.rows, self.dtype)(piece)
        return [_count(row, search) for row, search in zip(keys, self.searches, strict=True)]


def _count(keys: torch.Tensor, search: Search) -> Part:
    from_low = torch.ge(keys, search.low, out=torch.empty_like(keys))
    inside = torch.le(keys, search.high, out=torch.empty_like(keys)).mul_(from_low)
    above = _total(from_low)
    if search.low == search.high:
        count = _total(inside)
        return Part(above - count, count, torch.zeros(1, dtype=torch.int64), torch.tensor([count]))
    bins = (_picked(keys, inside.bool()) - search.low) >> search.shift
    return Part(above - len(bins), len(bins), *_tallied(bins))


def _total(ones: torch.Tensor) -> int:
    """Count ones among zeros; they fit into their own dtype, which a block's length does."""
    return int(ones.sum(dtype=ones.dtype))


def _picked(keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return keys[mask]: where little is picked, eight at once are passed over."""
    even = len(keys) // 8 * 8
    groups = mask[:even].view(torch.int64).nonzero().squeeze(1)
    wide = keys[:even].view(-1, 8).index_select(0, groups)
    picked = wide[mask[:even].view(-1, 8).index_select(0, groups)]
    return torch.cat([picked, keys[even:][mask[even:]]]) if even < len(keys) else picked


def _tallied(bins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return bins and how often each occurs; a few as they are, the same one perhaps twice."""
    if len(bins) < _UNTALLIED:
        return bins, None
    counts = torch.bincount(bins)
    found = counts.nonzero().squeeze(1)
    return found, counts[found]


def _guesses(scan: Scan, k: int, rows: Rows, dtype: torch.dtype) -> list[Search]:
    """Guess from a sample where to look; from the whole range where there is too little."""
    top = int(torch.iinfo(_INTEGERS[dtype]).max)
    everywhere = [Search(0, top, 0, top)] * len(scan.operands.experts)
    if scan.numel < _WORTH_A_GUESS:
        return everywhere
    sample = scan.sample(min(_SAMPLE, scan.numel // _SAMPLED))
    parts: list[torch.Tensor] = sample(_Magnitudes(rows, dtype), _appended, [])
    samples = torch.cat(parts, dim=1)
    return [_guess(row, k / scan.numel, top) for row in samples]


@dataclass(frozen=True)
class _Magnitudes:
    """The magnitudes of a block themselves, as integers, of shape (experts, elements)."""

    rows: Rows
    dtype: torch.dtype

    def __call__(self, piece: Piece) -> torch.Tensor:
        # On the CPU, where it is counted: what a GPU holds of a row is copied back once.
        magnitudes = self.rows(piece).to(self.dtype).cpu().abs().unsqueeze(-1).flatten(1)
        return magnitudes.view(_INTEGERS[self.dtype])


def _appended(parts: list[torch.Tensor], part: torch.Tensor) -> list[torch.Tensor]:
    return [*parts, part]


def _guess(sample: torch.Tensor, fraction: float, top: int) -> Search:
    """Look around a sample's quantile, `fraction` of the way down from the largest."""
    rank = fraction * len(sample)
    margin = _MARGIN * math.sqrt(rank * (1 - fraction)) + _MARGIN
    above, below = int(rank - margin), math.ceil(rank + margin)
    high = top if above < 1 else int(sample.kthvalue(len(sample) + 1 - above).values)
    low = 0 if below > len(sample) else int(sample.kthvalue(len(sample) + 1 - below).values)
    return Search(0, top, low, high)


def _widest(scan: Scan) -> torch.dtype:
    dtypes = {scan.operands.dtype(info.name) for info in scan.infos}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def trimmed(task_vectors: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Zero every entry whose magnitude is below its expert's threshold; equal ones are kept."""
    kept = torch.empty_like(task_vectors)
    for row, out, threshold in zip(task_vectors, kept, thresholds.tolist(), strict=True):
        torch.hardshrink(row, _next_below(threshold, row.dtype), out=out)
    return kept


def _next_below(threshold: float, dtype: torch.dtype) -> float:
    """Return the largest number below a threshold; infinity, which keeps nothing, as it is."""
    rounded = torch.tensor(threshold, dtype=torch.float64).to(dtype)
    if math.isinf(threshold) or float(rounded) < threshold:
        return float(rounded)
    return float(torch.nextafter(rounded, torch.full_like(rounded, -math.inf)))


@dataclass(frozen=True)
class Trim:
    """What must be known of all task vectors before one entry can be trimmed and elected."""

    #: each expert's smallest kept magnitude, shape (experts,)
    thresholds: torch.Tensor
    #: the sign of entries that cancel exactly: 1, -1, or 0 where even the majority is tied
    tie: float

    @classmethod
    def of(cls, scan: Scan, density: float, *, majority: bool = True) -> Trim:
        """Survey what a scan sees: thresholds and, if it is asked for, the sign of the majority.

        Without the majority, entries that cancel are positive.
        """
        kept = kept_count(density, scan.numel)
        if kept == 0 or scan.numel == 0:
            return cls(torch.full((len(scan.operands.experts),), torch.inf), 1.0)
        thresholds = kth_largest_magnitudes(scan, kept, _task_vectors)
        return cls(thresholds, majority_sign(scan, thresholds) if majority else 1.0)

    def kept(self, task_vectors: torch.Tensor) -> torch.Tensor:
        """Zero every entry that is not among the largest of its expert."""
        return trimmed(task_vectors, self.thresholds)

    def sign(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sign that each entry elects, of shape (...)."""
        return elected_sign(rows, self.tie)


def _task_vectors(piece: Piece) -> torch.Tensor:
    return piece.task_vectors


def majority_sign(scan: Scan, thresholds: torch.Tensor) -> float:
    """Return the sign that most entries elect, 1 or -1; 0 where it is a tie.

    An entry elects the sign of the weighted sum of its trimmed task vectors.
    """
    votes = scan(_SignVotes(thresholds), torch.add, torch.zeros((), dtype=torch.int64))
    return float(votes.sign())


@dataclass(frozen=True)
class _SignVotes:
    """Counts positive minus negative signs of the summed, trimmed entries of a block."""

    thresholds: torch.Tensor

    def __call__(self, piece: Piece) -> torch.Tensor:
        rows = trimmed(piece.task_vectors, self.thresholds) * piece.weights
        return in_order(rows).sign().to(torch.int64).sum()


def elected_sign(rows: torch.Tensor, tie: float) -> torch.Tensor:
    """Return the sign of the sum over experts, 1 or -1; where that is exactly zero, the sign `tie`.

    `tie` is 1, -1, or 0: then such entries have no sign, and are 0.
    """
    total = in_order(rows)
    if tie == 0:
        return total.sign_()
    # An exact zero is +0, which has a sign to copy.
    total = total if tie > 0 else torch.rsub(total, 0.0)
    return torch.copysign(torch.ones_like(total), total).mul_(tie)


def agreeing(rows: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Return the magnitudes of entries that have the elected sign, and 0 for all others."""
    return (rows * sign).clamp_min_(0)
