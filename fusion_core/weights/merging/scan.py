"""Passes over operands that gather what a kernel must know before it merges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from fusion_core.weights.merging.execution import in_units, is_in_process, run_all
from fusion_core.weights.merging.piece import Operands, Piece
from fusion_core.weights.merging.shared import shared_pass
from fusion_core.weights.source import BLOCK, Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from fusion_core.weights.source import TensorInfo

    Block = tuple[TensorInfo, tuple[int, int]]

#: Fewer elements than this are not worth the calls that read them.
_SHORTEST_RUN = 128
_GOLDEN = 0.6180339887498949

PartT = TypeVar("PartT")
TotalT = TypeVar("TotalT")


@dataclass(frozen=True)
class Scan:
    """A pass over the operands in fixed blocks, with partial results folded in a fixed order."""

    operands: Operands
    #: the tensors to look at: one, or all that are merged
    infos: Sequence[TensorInfo]
    executor: Executor
    #: the finest cut at which the operands can be read
    cut: Cut = Cut.ELEMENT

    def __call__(
        self,
        kernel: Callable[[Piece], PartT],
        fold: Callable[[TotalT, PartT], TotalT],
        initial: TotalT,
    ) -> TotalT:
        """Run `kernel` on every block and fold what it returns, in the blocks' order.

        A kernel may have `join(results)`, which makes one result of some: by it another process
        sends less.
        """
        said = (kernel, fold, initial, self.cut, self.blocks)
        return shared_pass(self.operands, said, lambda: self.fold(kernel, fold, initial))

    def fold(
        self,
        kernel: Callable[[Piece], PartT],
        fold: Callable[[TotalT, PartT], TotalT],
        initial: TotalT,
    ) -> TotalT:
        """Do what a call does, without looking for merges that share it: for what is large."""
        total = initial
        part = _Part(self.operands, kernel, self.cut, is_sent=not is_in_process(self.executor))
        for results in run_all(self.executor, part, in_units(self.blocks, self.executor)):
            for result in results:
                total = fold(total, result)
        return total

    @property
    def numel(self) -> int:
        """Elements in one operand."""
        return sum(info.numel for info in self.infos)

    @cached_property
    def blocks(self) -> list[Block]:
        """What is looked at, in order."""
        return [(info, span) for info in self.infos for span in self.cut.ranges(info)]

    def sample(self, numel: int) -> Scan:
        """Return a scan of about `numel` elements, evenly spread: for guesses to be proven later.

        A run of every block or, where there are too many or the operands cannot be cut, of some.
        """
        shortest = _SHORTEST_RUN if self.cut is Cut.ELEMENT else BLOCK
        filled = [block for block in self.blocks if block[0].numel]
        step = max(1, len(filled) * shortest // max(numel, 1))
        blocks = filled[::step]
        if self.cut is Cut.ELEMENT:
            run = max(_SHORTEST_RUN, numel // max(len(blocks), 1))
            blocks = [(info, _run_of(span, run, n)) for n, (info, span) in enumerate(blocks)]
        thinned = replace(self)
        thinned.__dict__["blocks"] = blocks
        return thinned


def _run_of(span: tuple[int, int], run: int, number: int) -> tuple[int, int]:
    """Take a run of a span at a place that differs from one span to the next."""
    start, stop = span
    room = max(stop - start - run, 0)
    start += int(room * (number * _GOLDEN % 1))
    return start, min(start + run, stop)


@dataclass(frozen=True)
class _Part(Generic[PartT]):
    """The work of some blocks."""

    operands: Operands
    kernel: Callable[[Piece], PartT]
    cut: Cut
    #: whether results go to another process, for which every tensor costs as much as adding it up
    is_sent: bool

    def __call__(self, blocks: Sequence[Block]) -> Sequence[PartT]:
        parts = [self.kernel(Piece(self.operands, *block, self.cut)) for block in blocks]
        join = getattr(self.kernel, "join", None) if self.is_sent else None
        return parts if join is None else [join(parts)]
