"""Find thresholds and the sign of the majority in one pass over the weights instead of two.

An entry votes by the sign of the sum of its task vectors after trimming, which depends on the
thresholds. Before the pass, a threshold is known to lie in a window that holds few magnitudes. So
the pass counts the votes of most entries. Of an entry with one magnitude in a window, it notes how
the vote changes if that magnitude is kept. It lists the few entries with more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from fusion_core.weights import Piece, is_compiled, shared_pass, sum_in_order
from fusion_thresholds._tally import BlockTally, Tally, ones
from fusion_thresholds.selection import find_largest, guess_windows, task_vectors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Scan
    from fusion_thresholds._tally import Search

#: The most numbers in a window, and in the list of entries with several magnitudes in windows.
_WIDEST, _LONGEST = 2**20, 2**22
#: The most of all magnitudes in a window: each is listed.
_FULLEST = 1 / 16


@dataclass(frozen=True)
class BlockPoll:
    """The magnitudes in windows of one block, and its votes as far as they are certain."""

    #: per expert: how many magnitudes lie above its window
    above: Sequence[int]
    #: the bins of magnitudes inside windows: a bin per number, window after window
    bins: torch.Tensor
    #: how the votes change if this magnitude is kept; 0 if its entry has several inside windows
    changes: torch.Tensor
    #: positive minus negative votes where magnitudes inside windows are trimmed
    votes: int
    #: the task vectors of entries with several magnitudes inside windows, of shape (experts, ...)
    crowded: torch.Tensor


@dataclass(frozen=True)
class WindowPoll:
    """Polls one block, with one window per expert: its lowest and highest bits of magnitudes."""

    bounds: tuple[tuple[int, int], ...]
    #: makes the result for a block: for compiled functions, which do not import this module
    block: ClassVar[type[BlockPoll]] = BlockPoll

    @cached_property
    def windows(self) -> torch.Tensor:
        """Lowest bits, highest bits, and first bin of each window, of shape (experts, 3)."""
        low, high = torch.tensor(self.bounds).T
        widths = high - low + 1
        return torch.stack([low, high, widths.cumsum(0) - widths], dim=1)

    def __call__(self, piece: Piece) -> BlockPoll:
        """Poll one block."""
        rows, weights = piece.task_vectors.flatten(1), piece.weights.flatten(1)
        keys = rows.abs().view(torch.int32)
        low, high, first = self.windows.to(torch.int32).T.unsqueeze(-1)
        inside = (keys >= low) & (keys <= high)
        crowd = inside.sum(0)
        votes = _vote(rows.where(keys > high, 0), weights)
        changes = (_vote(rows.where(keys >= low, 0), weights) - votes).where(crowd == 1, 0)
        is_crowded = crowd > 1
        return BlockPoll(
            above=(keys > high).sum(1).tolist(),
            bins=(keys - low + first)[inside],
            changes=changes.expand_as(inside)[inside],
            votes=int(votes.sum() - votes[is_crowded].sum()),
            crowded=rows[:, is_crowded],
        )

    def join(self, blocks: Sequence[BlockPoll]) -> BlockPoll:
        """Add up what several blocks hold."""
        return BlockPoll(
            [sum(counts) for counts in zip(*(block.above for block in blocks), strict=True)],
            torch.cat([block.bins for block in blocks]),
            torch.cat([block.changes for block in blocks]),
            sum(block.votes for block in blocks),
            torch.cat([block.crowded for block in blocks], dim=1),
        )


def _vote(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return sum_in_order(rows * weights).sign().to(torch.int32)


class _Poll:
    """The bins and the votes of a model."""

    def __init__(self, windows: Sequence[Search]) -> None:
        self.windows = windows
        self.function = WindowPoll(tuple((window.low, window.high) for window in windows))
        self._widths = [window.high - window.low + 1 for window in windows]
        # per bin: how many magnitudes it has, and how the votes change if they are kept
        self._counts = torch.zeros(sum(self._widths), dtype=torch.int64)
        self._changes = torch.zeros_like(self._counts)
        self._above = [0] * len(windows)
        self._votes = self._uncertain = 0
        self._crowded: list[torch.Tensor] = []

    def add(self, block: BlockPoll) -> _Poll:
        """Add a block."""
        self._above = [old + new for old, new in zip(self._above, block.above, strict=True)]
        self._counts.index_add_(0, block.bins, ones(block.bins))
        self._changes.index_add_(0, block.bins, block.changes.to(torch.int64))
        self._votes += block.votes
        self._uncertain += block.crowded.numel()
        if self._uncertain <= _LONGEST:
            self._crowded.append(block.crowded)
        return self

    def tallies(self) -> list[Tally]:
        """Return what lies above and inside of each window."""
        tallies = []
        counted = torch.split(self._counts, self._widths)
        for window, above, counts in zip(self.windows, self._above, counted, strict=True):
            tally, bins = Tally(window), counts.nonzero().squeeze(1)
            tally.add(BlockTally(above, int(counts.sum()), bins, counts[bins]))
            tallies.append(tally)
        return tallies

    def votes(self, keys: Sequence[int], weights: torch.Tensor) -> int | None:
        """Return the votes if the thresholds have these bits; None if too many are uncertain."""
        pairs = list(zip(self.windows, keys, strict=True))
        is_known = all(window.low <= key <= window.high for window, key in pairs)
        if not is_known or self._uncertain > _LONGEST:
            return None
        decided = zip(torch.split(self._changes, self._widths), pairs, strict=True)
        changed = sum(int(changes[key - window.low :].sum()) for changes, (window, key) in decided)
        rows = torch.cat(self._crowded, dim=1)
        bounds = torch.tensor(keys, dtype=torch.int32)[:, None]
        trimmed = rows.where(rows.abs().view(torch.int32) >= bounds, 0)
        return self._votes + changed + int(_vote(trimmed, weights).sum())


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
    is_narrow = all(
        guess.window.high - guess.window.low < _WIDEST and guess.share < _FULLEST
        for guess in guesses
    )
    if not (is_narrow and _is_compiled(scan)):
        return _as_floats(find_largest(scan, ranks, task_vectors_of, dtype, windows)), None
    poll = _Poll(windows)
    scan.fold(poll.function, _Poll.add, poll)
    searches = [
        window.narrow(rank, tally)
        for window, rank, tally in zip(windows, ranks, poll.tallies(), strict=True)
    ]
    keys = find_largest(scan, ranks, task_vectors_of, dtype, searches)
    weights = torch.tensor(scan.operands.weights or (1.0,) * len(ranks), dtype=dtype)[:, None]
    return _as_floats(keys), poll.votes(keys, weights)


def _is_compiled(scan: Scan) -> bool:
    tensors = (Piece(scan.operands, info, (0, info.numel), scan.cut) for info in scan.infos)
    return all(is_compiled(WindowPoll(()), tensor) for tensor in tensors)


def _as_floats(keys: Sequence[int]) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int32).view(torch.float32)
