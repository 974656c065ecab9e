"""Find thresholds and the sign of the majority in one pass over the weights instead of two.

An entry votes by the sign of the sum of its task vectors after trimming, which depends on the
thresholds. Before the pass, a threshold is known to lie in a window that holds few magnitudes. So
the pass counts the votes of most entries. Of an entry with one magnitude in a window, it notes how
the vote changes if that magnitude is kept. It lists the few entries with more of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Piece, is_compiled, shared_pass, sum_in_order
from fusion_thresholds._tally import BlockTally, Search, Tally
from fusion_thresholds.selection import (
    WindowCount,
    add_block,
    find_largest,
    guess_windows,
    task_vectors_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Scan

    Block = tuple[list[BlockTally], "BlockPoll"]

#: The most numbers in a window, and in the list of entries with several magnitudes in windows.
_WIDEST, _LONGEST = 2**20, 2**22


@dataclass(frozen=True)
class BlockPoll:
    """The votes of one block, as far as they are certain."""

    #: positive minus negative votes where magnitudes inside windows are trimmed
    votes: int
    #: per expert: the magnitudes of entries with no other one inside a window, less its lower end
    offsets: Sequence[torch.Tensor]
    #: per expert and offset: how the votes change if this magnitude is kept
    changes: Sequence[torch.Tensor]
    #: the task vectors of entries with several magnitudes inside windows, of shape (experts, ...)
    crowded: torch.Tensor

    @classmethod
    def join(cls, blocks: Sequence[BlockPoll]) -> BlockPoll:
        """Add up what several blocks hold."""
        return cls(
            sum(block.votes for block in blocks),
            [torch.cat(row) for row in zip(*(block.offsets for block in blocks), strict=True)],
            [torch.cat(row) for row in zip(*(block.changes for block in blocks), strict=True)],
            torch.cat([block.crowded for block in blocks], dim=1),
        )


@dataclass(frozen=True)
class WindowPoll:
    """Counts one block as `WindowCount` does, one window per expert, and its votes."""

    count: WindowCount

    @classmethod
    def between(cls, bounds: Sequence[tuple[int, int]]) -> WindowPoll:
        """Poll in windows with these lowest and highest bits of fp32 magnitudes, one per expert."""
        top = int(torch.iinfo(torch.int32).max)
        searches = tuple(Search(0, top, low, high) for low, high in bounds)
        return cls(WindowCount(task_vectors_of, torch.float32, searches))

    def __call__(self, piece: Piece) -> Block:
        """Count one block."""
        rows = piece.task_vectors.flatten(1)
        weights = piece.weights.flatten(1)
        keys = rows.abs().view(torch.int32)
        lows = torch.tensor([[search.low] for search in self.count.searches], dtype=torch.int32)
        highs = torch.tensor([[search.high] for search in self.count.searches], dtype=torch.int32)
        inside = (keys >= lows) & (keys <= highs)
        crowd = inside.sum(0)
        votes = _vote(rows.where(keys > highs, 0), weights)
        alone = (crowd == 1).nonzero().squeeze(1)
        near = keys[:, alone]
        change = _vote(rows[:, alone].where(near >= lows, 0), weights) - votes[alone]
        chosen = [row.nonzero().squeeze(1) for row in inside[:, alone]]
        offsets = [
            row[index] - low for row, index, low in zip(near, chosen, lows.flatten(), strict=True)
        ]
        changes = [change[index] for index in chosen]
        is_crowded = crowd > 1
        certain = int(votes.sum()) - int(votes[is_crowded].sum())
        return self.count(piece), BlockPoll(certain, offsets, changes, rows[:, is_crowded])

    def block(
        self,
        above: Sequence[int],
        offsets: Sequence[torch.Tensor],
        votes: int,
        changes: Sequence[torch.Tensor],
        crowded: torch.Tensor,
    ) -> Block:
        """Return the result for a block, for compiled functions.

        Per expert: how many magnitudes lie above its window, the offsets of those inside it from
        its lower end, and their changes, 0 for those of crowded entries. Tensors are copied: a view
        would keep all of the memory that a function has to allocate.
        """
        tallies = [
            self.count.tally(search, number, listed)
            for search, (number, listed) in enumerate(zip(above, offsets, strict=True))
        ]
        listed = [row.clone() for row in offsets]
        poll = BlockPoll(votes, listed, [row.clone() for row in changes], crowded.clone())
        return tallies, poll

    def join(self, blocks: Sequence[Block]) -> Block:
        """Add up what several blocks hold."""
        tallies = self.count.join([tally for tally, _ in blocks])
        return tallies, BlockPoll.join([poll for _, poll in blocks])


def _vote(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return sum_in_order(rows * weights).sign().to(torch.int32)


@dataclass
class _Poll:
    """The votes of a model."""

    changes: list[torch.Tensor]
    votes: int = 0
    crowded: list[torch.Tensor] = field(default_factory=list)
    listed: int = 0

    @classmethod
    def over(cls, windows: Sequence[Search]) -> _Poll:
        widths = (window.high - window.low + 1 for window in windows)
        return cls([torch.zeros(width, dtype=torch.int64) for width in widths])

    def add(self, block: BlockPoll) -> None:
        self.votes += block.votes
        for change, offsets, changes in zip(
            self.changes, block.offsets, block.changes, strict=True
        ):
            change.index_add_(0, offsets, changes.to(torch.int64))
        self.listed += block.crowded.numel()
        if self.listed <= _LONGEST:
            self.crowded.append(block.crowded)

    def result(
        self, windows: Sequence[Search], keys: Sequence[int], weights: torch.Tensor
    ) -> int | None:
        """Return the votes if the thresholds have these bits; None if too many are uncertain."""
        is_known = all(
            window.low <= key <= window.high for window, key in zip(windows, keys, strict=True)
        )
        if not is_known or self.listed > _LONGEST:
            return None
        decided = zip(self.changes, windows, keys, strict=True)
        votes = self.votes + sum(
            int(changes[key - window.low :].sum()) for changes, window, key in decided
        )
        rows = torch.cat(self.crowded, dim=1)
        bounds = torch.tensor(keys, dtype=torch.int32)[:, None]
        trimmed = rows.where(rows.abs().view(torch.int32) >= bounds, 0)
        return votes + int(_vote(trimmed, weights).sum())


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
    _is_worth_it(scan, [])  # the kernel is loaded during the sample
    windows = guess_windows(scan, ranks, task_vectors_of, dtype)
    if not _is_worth_it(scan, windows):
        return _as_floats(find_largest(scan, ranks, task_vectors_of, dtype, windows)), None
    poll, tallies = _Poll.over(windows), [Tally(window) for window in windows]

    def add(total: list[Tally], block: Block) -> list[Tally]:
        poll.add(block[1])
        return add_block(total, block[0])

    tallies = scan.fold(_poll_of(windows), add, tallies)
    searches = [
        window.narrow(rank, tally)
        for window, rank, tally in zip(windows, ranks, tallies, strict=True)
    ]
    keys = find_largest(scan, ranks, task_vectors_of, dtype, searches)
    weights = torch.tensor(scan.operands.weights or (1.0,) * len(ranks), dtype=dtype)[:, None]
    return _as_floats(keys), poll.result(windows, keys, weights)


def _poll_of(windows: Sequence[Search]) -> WindowPoll:
    return WindowPoll.between([(window.low, window.high) for window in windows])


def _is_worth_it(scan: Scan, windows: Sequence[Search]) -> bool:
    is_narrow = all(window.high - window.low < _WIDEST for window in windows)
    function = _poll_of(windows)
    tensors = (Piece(scan.operands, info, (0, info.numel), scan.cut) for info in scan.infos)
    return is_narrow and all(is_compiled(function, tensor) for tensor in tensors)


def _as_floats(keys: Sequence[int]) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int32).view(torch.float32)
