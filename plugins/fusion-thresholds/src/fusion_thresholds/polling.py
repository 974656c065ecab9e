"""Poll one block: its magnitudes inside windows, and the votes of its entries.

An entry votes by the sign of the sum of its task vectors after trimming, which depends on the
thresholds. A threshold is known to lie in a window that holds few magnitudes. So most votes are
certain. Of an entry with one magnitude in a window, a poll notes how the vote changes if that
magnitude is kept. It lists the few entries with more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from fusion_core.weights import sum_in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.weights import Piece


@dataclass(frozen=True)
class BlockPoll:
    """The magnitudes in windows of one block, and its votes as far as they are certain."""

    #: per expert: how many magnitudes lie above its window
    above: list[int]
    #: per expert: how many lie inside its window
    inside: list[int]
    #: the bins of magnitudes inside windows: a bin per number, window after window
    bins: torch.Tensor
    #: how the votes change if this magnitude is kept; 0 if its entry has several inside windows
    changes: torch.Tensor
    #: positive minus negative votes where magnitudes inside windows are trimmed
    votes: int
    #: the task vectors of entries with several magnitudes inside windows, of shape (experts, ...)
    crowded: torch.Tensor

    def by_window(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return the bins and the changes of each window."""
        parts = (torch.split(part, self.inside) for part in (self.bins, self.changes))
        return zip(*parts, strict=True)


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
        votes = vote_of(rows.where(keys > high, 0), weights)
        changes = (vote_of(rows.where(keys >= low, 0), weights) - votes).where(crowd == 1, 0)
        is_crowded = crowd > 1
        return BlockPoll(
            above=(keys > high).sum(1).tolist(),
            inside=inside.sum(1).tolist(),
            bins=(keys - low + first)[inside],
            changes=changes.expand_as(inside)[inside],
            votes=int(votes.sum() - votes[is_crowded].sum()),
            crowded=rows[:, is_crowded],
        )

    def join(self, blocks: Sequence[BlockPoll]) -> BlockPoll:
        """Add up what several blocks hold."""
        windows = join_windows(blocks)
        return BlockPoll(
            add_up([block.above for block in blocks]),
            add_up([block.inside for block in blocks]),
            torch.cat([bins for bins, _ in windows]),
            torch.cat([changes for _, changes in windows]),
            sum(block.votes for block in blocks),
            torch.cat([block.crowded for block in blocks], dim=1),
        )


def join_windows(blocks: Sequence[BlockPoll]) -> list[list[torch.Tensor]]:
    """Return the bins and the changes of each window, of several blocks."""
    return [
        [torch.cat(parts) for parts in zip(*window, strict=True)]
        for window in zip(*(block.by_window() for block in blocks), strict=True)
    ]


def add_up(counts: Sequence[Sequence[int]]) -> list[int]:
    """Return the sum of each window's counts."""
    return [sum(of_window) for of_window in zip(*counts, strict=True)]


def vote_of(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sign of each entry's weighted sum."""
    return sum_in_order(rows * weights).sign().to(torch.int32)
