"""Where the k-th largest of many integers lies: a window, and what a pass has counted in it.

A window is narrowed until it holds one value. It knows integers and counts; which numbers they
stand for, and who passes over them, is `select.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bits of a digit: bins to tally a window in. A guessed window holds little, so that its tally may
#: have many bins; of one that holds everything, every block makes a tally of them all.
_GUESSED, _UNGUESSED = 20, 16
#: Bins that are summed together to find the right one faster.
_GROUP = 2**10
#: So many values of a window are kept rather than counted: clearing its bins would take longer.
_FEW = 2**17
#: From so many numbers on, the k-th largest is looked for among those with its leading bits.
_MANY, _LEADING = 2**15, 13


@dataclass(frozen=True)
class Search:
    """What is known of one magnitude, as integers: bottom <= it <= top, and where to look next."""

    bottom: int
    top: int
    low: int
    high: int

    @property
    def shift(self) -> int:
        """Bits by which values in the window are rounded to be tallied."""
        guessed = (self.low, self.high) != (self.bottom, self.top)
        digit = _GUESSED if guessed else _UNGUESSED
        return max(0, (self.high - self.low).bit_length() - digit)

    def narrowed(self, k: int, tally: Tally) -> Search:
        """Go on with what a pass has proven."""
        if tally.above >= k:
            bottom, top = self.high + 1, self.top
        elif tally.above + tally.inside < k:
            bottom, top = self.bottom, self.low - 1
        else:
            bottom = self.low + (tally.place(k - tally.above) << self.shift)
            top = min(bottom + (1 << self.shift) - 1, self.high)
        return Search(bottom, top, bottom, top)


def _place(counts: torch.Tensor, k: int) -> int:
    """Return the bin of the k-th largest: first its group of bins, then itself."""
    groups = counts.view(-1, _GROUP).sum(1)
    group, k = _place_in(groups, k)
    place, _ = _place_in(counts[group * _GROUP : (group + 1) * _GROUP], k)
    return group * _GROUP + place


def _place_in(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest, and which it is among those of that bin."""
    from_above = counts.flip(0).cumsum(0)
    place = len(counts) - 1 - int((from_above < k).sum())
    return place, k - int(counts[place + 1 :].sum())


@dataclass
class Tally:
    """How many magnitudes lie above a window, and where those lie that are in it.

    A few are kept as they are; when there are too many, they are counted by bin.
    """

    search: Search
    above: int = 0
    inside: int = 0
    few: list[torch.Tensor] = field(default_factory=list)
    counts: torch.Tensor | None = None

    def add(self, part: Part) -> None:
        """Add what one block holds."""
        self.above += part.above
        self.inside += part.inside
        if part.counts is None and self.counts is None and self.inside <= _FEW:
            self.few.append(part.bins)
            return
        self._count(part.bins, part.counts)

    def place(self, k: int) -> int:
        """Return the bin of the k-th largest in the window."""
        if self.counts is not None:
            return _place(self.counts, k)
        span = self.search.high - self.search.low
        return kth_largest(torch.cat(self.few), k, span >> self.search.shift)

    def _count(self, bins: torch.Tensor, counts: torch.Tensor | None) -> None:
        if self.counts is None:
            groups = ((self.search.high - self.search.low) >> self.search.shift) // _GROUP + 1
            self.counts = torch.zeros(groups * _GROUP, dtype=torch.int64)
            few, self.few = self.few, []
            for each in few:
                self._count(each, None)
        once = torch.ones((), dtype=torch.int64).expand(len(bins))
        self.counts.index_add_(0, bins, once if counts is None else counts)


@dataclass(frozen=True)
class Part:
    """What one block adds to a tally: bins, and how often each occurs; None for once each."""

    above: int
    inside: int
    bins: torch.Tensor
    counts: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """Return what several blocks add."""
        bins, counts = [part.bins for part in parts], [part.counts for part in parts]
        ones = [torch.ones(len(each), dtype=torch.int64) for each in bins]
        known = [one if each is None else each for one, each in zip(ones, counts, strict=True)]
        return cls(
            sum(part.above for part in parts),
            sum(part.inside for part in parts),
            torch.cat(bins),
            None if all(count is None for count in counts) else torch.cat(known),
        )


def kth_largest(numbers: torch.Tensor, k: int, top: int) -> int:
    """Return the k-th largest of some integers from 0 to `top`.

    Of many, those that share its leading bits are found first: selecting takes four times as long.
    """
    if len(numbers) >= _MANY:
        leading = numbers >> max(0, top.bit_length() - _LEADING)
        place, k = _place_in(torch.bincount(leading), k)
        numbers = picked(numbers, leading == place)
    return int(numbers.kthvalue(len(numbers) + 1 - k).values)


def picked(keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return keys[mask]: where little is picked, eight at once are passed over."""
    even = len(keys) // 8 * 8
    groups = mask[:even].view(torch.int64).nonzero().squeeze(1)
    wide = keys[:even].view(-1, 8).index_select(0, groups)
    picked = wide.masked_select(mask[:even].view(-1, 8).index_select(0, groups))
    return torch.cat([picked, keys[even:][mask[even:]]]) if even < len(keys) else picked
