"""Search for the k-th largest of many integers by counting how many lie in a window.

Each pass narrows the window until it holds one value. This module knows integers and counts;
`selection.py` knows which numbers they stand for and makes the passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Bits of a bin's number. A guessed window holds few values, so it may have many bins. A window
#: that holds everything gets fewer bins, because every block fills them.
_GUESSED_BITS, _UNGUESSED_BITS = 20, 16
#: Bins that are summed together, to find the right one faster.
_GROUP = 2**10
#: Up to this many values of a window are listed, which is faster than clearing the bins.
_MOST_LISTED = 2**17


@dataclass(frozen=True)
class Search:
    """The known bounds of one integer: bottom <= it <= top; the next pass looks in [low, high]."""

    bottom: int
    top: int
    low: int
    high: int

    @property
    def shift(self) -> int:
        """How many bits the values in the window lose to become the numbers of bins."""
        is_guessed = (self.low, self.high) != (self.bottom, self.top)
        bits = _GUESSED_BITS if is_guessed else _UNGUESSED_BITS
        return max(0, (self.high - self.low).bit_length() - bits)

    def narrow(self, k: int, tally: Tally) -> Search:
        """Return the search for the k-th largest that a pass over all values leaves."""
        if tally.above >= k:
            bottom, top = self.high + 1, self.top
        elif tally.above + tally.inside < k:
            bottom, top = self.bottom, self.low - 1
        else:
            bottom = self.low + (tally.bin_of_kth(k - tally.above) << self.shift)
            top = min(bottom + (1 << self.shift) - 1, self.high)
        return Search(bottom, top, bottom, top)


@dataclass(frozen=True)
class BlockTally:
    """The bins that one block adds to a tally, and their counts. None means once each."""

    above: int
    inside: int
    bins: torch.Tensor
    counts: torch.Tensor | None = None

    @classmethod
    def join(cls, blocks: Sequence[BlockTally]) -> BlockTally:
        """Add up what several blocks hold."""
        counts = None
        if any(block.counts is not None for block in blocks):
            counts = torch.cat([_counts_of(block) for block in blocks])
        return cls(
            sum(block.above for block in blocks),
            sum(block.inside for block in blocks),
            torch.cat([block.bins for block in blocks]),
            counts,
        )


@dataclass
class Tally:
    """How many values lie above a window, and in which bins those inside it lie.

    A few values are listed bin by bin. When they become too many, they are counted per bin.
    """

    search: Search
    above: int = 0
    inside: int = 0
    listed: list[torch.Tensor] = field(default_factory=list)
    counts: torch.Tensor | None = None

    def add(self, block: BlockTally) -> None:
        """Add what one block holds."""
        self.above += block.above
        self.inside += block.inside
        if self.counts is None:
            if block.counts is None and self.inside <= _MOST_LISTED:
                self.listed.append(block.bins)
                return
            groups = ((self.search.high - self.search.low) >> self.search.shift) // _GROUP + 1
            self.counts = torch.zeros(groups * _GROUP, dtype=torch.int64)
            for bins in self.listed:
                self.counts.index_add_(0, bins, ones(bins))
            self.listed.clear()
        self.counts.index_add_(0, block.bins, _counts_of(block))

    def bin_of_kth(self, k: int) -> int:
        """Return the bin of the k-th largest value in the window."""
        if self.counts is None:
            return kth_largest(torch.cat(self.listed), k)
        group, k = bin_and_rank(self.counts.view(-1, _GROUP).sum(1), k)
        number, _ = bin_and_rank(self.counts[group * _GROUP : (group + 1) * _GROUP], k)
        return group * _GROUP + number


def ones(bins: torch.Tensor) -> torch.Tensor:
    """Return a one per bin, without memory for them."""
    return torch.ones((), dtype=torch.int64).expand(len(bins))


def _counts_of(block: BlockTally) -> torch.Tensor:
    return ones(block.bins) if block.counts is None else block.counts


def bin_and_rank(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest value, and its rank among the values of that bin."""
    from_above = counts.flip(0).cumsum(0)
    number = len(counts) - 1 - int((from_above < k).sum())
    return number, k - int(counts[number + 1 :].sum())


def kth_largest(numbers: torch.Tensor, k: int) -> int:
    """Return the k-th largest of some integers.

    `numpy.partition` takes ten times as long if many are equal, as differences of bf16 weights are.
    """
    return int(numbers.kthvalue(len(numbers) - k + 1).values)


def select_by_mask(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return values[mask], skipping eight values at a time where the mask is empty."""
    even = len(values) // 8 * 8
    groups = mask[:even].view(torch.int64).nonzero().squeeze(1)
    wide = values[:even].view(-1, 8).index_select(0, groups)
    selected = wide.masked_select(mask[:even].view(-1, 8).index_select(0, groups))
    return torch.cat([selected, values[even:][mask[even:]]]) if even < len(values) else selected
