"""Passes over operands that gather the statistics a kernel needs before it merges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from fusion_core.weights.merging.compiled import blocks_at_once, call_on_piece
from fusion_core.weights.merging.execution import (
    SerialExecutor,
    group_into_units,
    is_in_process,
    run_all,
)
from fusion_core.weights.merging.piece import Operands, Piece
from fusion_core.weights.merging.result_cache import shared_pass
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
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
        """Run `kernel` on every block and fold its results, in the blocks' order.

        A kernel may have a method `join(results)` that makes one result of several. Another process
        then sends fewer results.
        """
        key = (kernel, fold, initial, self.cut, self.blocks)
        return shared_pass(self.operands, key, lambda: self.fold(kernel, fold, initial))

    def fold(
        self,
        kernel: Callable[[Piece], PartT],
        fold: Callable[[TotalT, PartT], TotalT],
        initial: TotalT,
    ) -> TotalT:
        """Do what a call does, but share nothing between merges: for large results."""
        total = initial
        work = _Work(self.operands, kernel, self.cut, joins=not is_in_process(self.executor))
        units = [*group_into_units(self.blocks, self.executor, _elements_in)]
        # One unit is done sooner by the thread that waits for it.
        is_short = len(units) == 1 and is_in_process(self.executor)
        for results in run_all(SerialExecutor() if is_short else self.executor, work, units):
            for result in results:
                total = fold(total, result)
        return total

    @property
    def numel(self) -> int:
        """Elements in one operand."""
        return sum(info.numel for info in self.infos)

    @cached_property
    def blocks(self) -> list[Block]:
        """The ranges that the scan reads, in order."""
        return [(info, span) for info in self.infos for span in self.cut.ranges(info)]

    def sample(self, numel: int) -> Scan:
        """Return a scan of about `numel` evenly spread elements: for guesses to be proven later.

        It reads a run of every block or, if there are too many blocks, of some. If the operands
        cannot be cut, it reads everything.
        """
        if self.cut is not Cut.ELEMENT:
            return self
        blocks = [block for block in self.blocks if block[0].numel]
        blocks = blocks[:: max(1, len(blocks) * _SHORTEST_RUN // max(numel, 1))]
        total = sum(stop - start for _, (start, stop) in blocks)
        share = numel / max(total, 1)
        sample = replace(self)
        sample.__dict__["blocks"] = [
            (info, _run_within(span, share, number)) for number, (info, span) in enumerate(blocks)
        ]
        return sample


def _elements_in(block: Block) -> int:
    start, stop = block[1]
    return stop - start


def _run_within(span: tuple[int, int], share: float, number: int) -> tuple[int, int]:
    """Return a run of a share of a span, at an offset that differs from one span to the next."""
    start, stop = span
    length = max(_SHORTEST_RUN, int(share * (stop - start)))
    room = max(stop - start - length, 0)
    start += int(room * (number * _GOLDEN % 1))
    return start, min(start + length, stop)


@dataclass(frozen=True)
class _Work(Generic[PartT]):
    """A kernel's work on some blocks."""

    operands: Operands
    kernel: Callable[[Piece], PartT]
    cut: Cut
    #: whether to join the results: to another process, every tensor costs as much as adding it up
    joins: bool

    def __call__(self, blocks: Sequence[Block]) -> Sequence[PartT]:
        results = [call_on_piece(self.kernel, piece) for piece in self._pieces(blocks)]
        join = getattr(self.kernel, "join", None) if self.joins else None
        return results if join is None else [join(results)]

    def _pieces(self, blocks: Sequence[Block]) -> Iterator[Piece]:
        """Yield each block or, if a compiled function takes several at once, neighbours."""
        most = blocks_at_once(self.kernel, Piece(self.operands, *blocks[0], self.cut))
        for group in _neighbours(blocks, most):
            (info, (start, _)), (_, (_, stop)) = group[0], group[-1]
            yield Piece(self.operands, info, (start, stop), self.cut)


def _neighbours(blocks: Sequence[Block], most: int) -> Iterator[list[Block]]:
    """Group blocks of one tensor that follow each other, at most so many."""
    group: list[Block] = []
    for info, span in blocks:
        if group and (len(group) == most or (info, span[0]) != (group[-1][0], group[-1][1][1])):
            yield group
            group = []
        group.append((info, span))
    yield group
