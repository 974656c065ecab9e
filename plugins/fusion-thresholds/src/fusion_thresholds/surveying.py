"""Find thresholds and the sign of the majority in one pass over the weights instead of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Piece, is_compiled, shared_pass
from fusion_thresholds._tally import Search, Tally, bin_and_rank, kth_largest, ones
from fusion_thresholds.polling import WindowPoll, add_up, join_windows, vote_of
from fusion_thresholds.sampling import guess_windows
from fusion_thresholds.selection import find_largest, task_vectors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Scan
    from fusion_thresholds.polling import BlockPoll
    from fusion_thresholds.sampling import Guess

#: The most magnitudes to list, and the most bins of a window if there are more.
_MOST_LISTED, _WIDEST = 2**20, 2**20
#: The most bins of all windows: each has a number of 32 bits.
_MOST_BINS = 2**31
#: The most numbers in the list of entries with several magnitudes in windows.
_LONGEST = 2**22
#: The most of all magnitudes in a window: each is listed.
_FULLEST = 1 / 5


@dataclass(frozen=True)
class _Inside:
    """The magnitudes inside one window, less its lower end, and how votes change with them."""

    offsets: torch.Tensor
    changes: torch.Tensor
    #: how many have each offset; None for one, and then the offsets are not sorted
    counts: torch.Tensor | None = None

    @classmethod
    def of(cls, changes: torch.Tensor, counts: torch.Tensor) -> _Inside:
        """Return the magnitudes of all bins of a window."""
        occupied = counts.nonzero().squeeze(1)
        return cls(occupied, changes[occupied], counts[occupied])

    def kth_largest(self, k: int) -> int:
        """Return the k-th largest offset."""
        if self.counts is None:
            return kth_largest(self.offsets, k)
        number, _ = bin_and_rank(self.counts, k)
        return int(self.offsets[number])


class _Poll:
    """The magnitudes inside windows, and the votes, of all that a scan sees.

    Some magnitudes are listed. If they become too many, they are counted per bin. If there are too
    many bins for it, they are forgotten.
    """

    def __init__(self, windows: Sequence[Search]) -> None:
        self.windows = windows
        self.function = WindowPoll(tuple((window.low, window.high) for window in windows))
        self._widths = [window.high - window.low + 1 for window in windows]
        self._above, self._inside = [0] * len(windows), [0] * len(windows)
        self._votes = self._uncertain = self._waiting = 0
        self._knows_inside = True
        self._crowded: list[torch.Tensor] = []
        self._listed: list[BlockPoll] = []
        # per bin: how the votes change if its magnitudes are kept, and how many it has
        self._counted: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, block: BlockPoll) -> _Poll:
        """Add a block."""
        self._above = add_up([self._above, block.above])
        self._inside = add_up([self._inside, block.inside])
        self._votes += block.votes
        self._uncertain += block.crowded.numel()
        if self._uncertain <= _LONGEST:
            self._crowded.append(block.crowded)
        if self._knows_inside:
            self._listed.append(block)
            self._waiting += len(block.bins)
        if self._waiting > _MOST_LISTED:
            self._count()
        return self

    def finish(self, ranks: Sequence[int]) -> list[Search]:
        """Return the searches for the magnitudes of these ranks: most are found."""
        if self._counted is not None:
            self._count()
        self._magnitudes = self._by_window() if self._knows_inside else None
        return [self._narrow(expert, rank) for expert, rank in enumerate(ranks)]

    def _narrow(self, expert: int, rank: int) -> Search:
        window, above, inside = self.windows[expert], self._above[expert], self._inside[expert]
        if not above < rank <= above + inside:
            return window.narrow(rank, Tally(window, above, inside))
        if self._magnitudes is None:
            return Search(window.low, window.high, window.low, window.high)
        key = window.low + self._magnitudes[expert].kth_largest(rank - above)
        return Search(key, key, key, key)

    def votes(self, keys: Sequence[int], weights: torch.Tensor) -> int | None:
        """Return the votes if the thresholds have these bits; None if too many are uncertain."""
        pairs = list(zip(self.windows, keys, strict=True))
        is_known = all(window.low <= key <= window.high for window, key in pairs)
        if self._magnitudes is None or not is_known or self._uncertain > _LONGEST:
            return None
        changed = sum(
            int((inside.changes * (inside.offsets >= key - window.low)).sum())
            for (window, key), inside in zip(pairs, self._magnitudes, strict=True)
        )
        rows = torch.cat(self._crowded, dim=1)
        bounds = torch.tensor(keys, dtype=torch.int32)[:, None]
        trimmed = rows.where(rows.abs().view(torch.int32) >= bounds, 0)
        return self._votes + changed + int(vote_of(trimmed, weights).sum())

    def _count(self) -> None:
        """Count per bin what is listed, or forget it."""
        listed, self._listed, self._waiting = self._listed, [], 0
        if max(self._widths) > _WIDEST:
            self._knows_inside = False
            return
        if self._counted is None:
            zeros = torch.zeros(2, sum(self._widths), dtype=torch.int64)
            self._counted = zeros[0], zeros[1]
        total, counts = self._counted
        for block in listed:
            total.index_add_(0, block.bins, block.changes.to(torch.int64))
            counts.index_add_(0, block.bins, ones(block.bins))

    def _by_window(self) -> list[_Inside]:
        if self._counted is not None:
            split = (torch.split(numbers, self._widths) for numbers in self._counted)
            pairs = zip(*split, strict=True)
            return [_Inside.of(total, counts) for total, counts in pairs]
        firsts = self.function.windows[:, 2].tolist()
        return [
            _Inside(bins - first, changes)
            for (bins, changes), first in zip(join_windows(self._listed), firsts, strict=True)
        ]


def thresholds_and_votes(scan: Scan, ranks: Sequence[int]) -> tuple[torch.Tensor, int | None]:
    """Return each expert's magnitude of its own rank, and the votes of entries trimmed by these.

    Magnitudes are fp32, and ranks begin at 1. The votes are positive minus negative ones, or None
    if they need a pass of their own: if too many remain uncertain, or if no kernel serves
    `WindowPoll`, which takes torch longer than two passes.
    """
    key = (thresholds_and_votes, ranks, scan.cut, scan.infos)
    return shared_pass(scan.operands, key, lambda: _survey(scan, ranks))


def _survey(scan: Scan, ranks: Sequence[int]) -> tuple[torch.Tensor, int | None]:
    dtype = torch.float32
    _is_compiled(scan)  # the kernel is loaded during the sample
    guesses = guess_windows(scan, ranks, task_vectors_of, dtype)
    windows = [guess.window for guess in guesses]
    if not (_is_worth_a_poll(guesses, scan.numel) and _is_compiled(scan)):
        return _as_floats(find_largest(scan, ranks, task_vectors_of, dtype, windows)), None
    poll = _Poll(windows)
    scan.fold(poll.function, _Poll.add, poll)
    keys = find_largest(scan, ranks, task_vectors_of, dtype, poll.finish(ranks))
    weights = torch.tensor(scan.operands.weights or (1.0,) * len(ranks), dtype=dtype)[:, None]
    return _as_floats(keys), poll.votes(keys, weights)


def _is_worth_a_poll(guesses: Sequence[Guess], numel: int) -> bool:
    """Tell whether windows hold few of all magnitudes, and few enough to list or to count."""
    widths = [guess.window.high - guess.window.low + 1 for guess in guesses]
    listed = numel * sum(guess.share for guess in guesses)
    fits = max(widths) <= _WIDEST or (listed < _MOST_LISTED / 2 and sum(widths) < _MOST_BINS)
    return fits and max(guess.share for guess in guesses) < _FULLEST


def _is_compiled(scan: Scan) -> bool:
    tensors = (Piece(scan.operands, info, (0, info.numel), scan.cut) for info in scan.infos)
    return all(is_compiled(WindowPoll(()), tensor) for tensor in tensors)


def _as_floats(keys: Sequence[int]) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int32).view(torch.float32)
