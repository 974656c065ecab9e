"""The search for thresholds: how many magnitudes lie above a window, and which lie inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_core.weights.merging.selection import tally_bins, task_vectors_of
from fusion_kernels.loops import LARGEST, STRIP, compiled, read_row, widen
from fusion_kernels.operands import can_read, read_addresses

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo
    from fusion_core.weights.merging.selection import BlockTally

#: A window holds few of the magnitudes, so most groups of this many have none.
_GROUP = 32


class CountingKernel(CompiledFunction):
    """`WindowCount` of task vectors."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve magnitudes of task vectors in fp32."""
        return (
            operands.base is not None
            and function.rows is task_vectors_of
            and function.dtype is torch.float32
            and can_read(operands, info)
        )

    def __call__(self, function: Any, piece: Piece) -> list[BlockTally] | None:  # noqa: ANN401
        """Count one block."""
        searches = function.searches
        experts = len(piece.names)
        parts = read_addresses(piece, relative=True)
        repeats = len(searches) // experts
        above, inside = np.zeros(len(searches), np.int64), np.zeros(len(searches), np.int64)
        keys = np.empty((len(searches), parts.count + 1), np.int32)
        is_finite = _count(
            np.tile(parts.experts, repeats),
            np.tile(parts.kinds, repeats),
            np.tile(parts.modes, repeats),
            parts.base,
            parts.base_kind,
            parts.count,
            np.array([search.low for search in searches], np.uint32),
            np.array([search.high - search.low for search in searches], np.uint32),
            above,
            inside,
            keys,
        )
        if not is_finite:
            return None
        return [
            tally_bins(int(higher), torch.from_numpy(row[:number]) >> search.shift)
            for row, number, higher, search in zip(keys, inside, above, searches, strict=True)
        ]


@compiled
def _count(  # noqa: PLR0913, PLR0917 - the operands of a loop
    experts: np.ndarray,
    kinds: np.ndarray,
    modes: np.ndarray,
    base_address: int,
    base_kind: int,
    count: int,
    lows: np.ndarray,
    widths: np.ndarray,
    above: np.ndarray,
    inside: np.ndarray,
    keys: np.ndarray,
) -> bool:
    """Count magnitudes above each window, and list those inside it less its lower end.

    Returns False if an operand is not finite. `keys` has room for one magnitude more than a block
    holds, because each is written before it is known to lie inside.
    """
    base, row = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    bits = row.view(np.uint32)
    largest = np.uint32(0)
    for start in range(0, count, STRIP):
        size = min(STRIP, count - start)
        widen(base_address, base_kind, start, base, size)
        for number in range(len(experts)):
            row_largest = read_row(
                experts[number], kinds[number], modes[number], base, start, row, size
            )
            largest = max(largest, row_largest)
            low, width = lows[number], widths[number]
            at_least = np.int32(0)
            for i in range(size):
                magnitude = bits[i] & np.uint32(0x7FFFFFFF)
                at_least += np.int32(magnitude >= low)
                bits[i] = magnitude - low  # of smaller ones: more than any width
            listed, filled = keys[number], inside[number]
            before = filled
            for begin in range(0, size, _GROUP):
                group = bits[begin : min(begin + _GROUP, size)]
                smallest = np.uint32(0xFFFFFFFF)
                for i in range(len(group)):
                    smallest = min(smallest, group[i])
                if smallest <= width:
                    for i in range(len(group)):
                        listed[filled] = group[i]
                        filled += np.int64(group[i] <= width)
            inside[number] = filled
            above[number] += at_least - (filled - before)
    return largest <= np.uint32(LARGEST)
