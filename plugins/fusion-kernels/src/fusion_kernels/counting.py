"""The search for thresholds: how many magnitudes lie above a window, and which lie inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.loops import LARGEST, MAGNITUDE, STRIP, Parts, compiled, read_strip
from fusion_kernels.operands import can_read, read_parts

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusion_core.weights import Operands, Piece, TensorInfo

#: A window holds few of the magnitudes, so most groups of this many have none.
_GROUP = 32


class WindowCounts(CompiledFunction):
    """`WindowCount` of task vectors."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve magnitudes of task vectors in fp32."""
        return (
            operands.base is not None
            and function.of_task_vectors
            and function.dtype is torch.float32
            and can_read(operands, info)
        )

    def __call__(self, function: Any, piece: Piece) -> list[Any] | None:  # noqa: ANN401
        """Count one block, in one window per search; several searches may be of one expert."""
        searches = function.searches
        parts, _tensors = read_parts(piece, relative=True)
        above, inside = np.zeros((2, len(searches)), np.int64)
        keys = np.empty((len(searches), parts.elements + 1), np.int32)
        lows = np.array([search.low for search in searches], np.uint32)
        widths = np.array([search.high - search.low for search in searches], np.uint32)
        if not _count(parts, lows, widths, above, inside, keys):
            return None
        return [
            function.tally(search, int(above[search]), torch.from_numpy(keys[search, :filled]))
            for search, filled in enumerate(inside)
        ]


@compiled
def _count(  # noqa: PLR0913, PLR0917 - numba knows no keywords
    parts: Parts,
    lows: npt.NDArray[np.uint32],
    widths: npt.NDArray[np.uint32],
    above: npt.NDArray[np.int64],
    inside: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int32],
) -> np.bool_:
    """Count magnitudes above each window, and list those inside it, less its lower end.

    Returns false if an operand is not finite. `keys` has room for one more than a block holds,
    because each magnitude is written before it is known to lie inside.
    """
    base = np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    offsets = np.empty(STRIP, np.uint32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        for search in range(len(lows)):
            bits = rows[search % len(rows)].view(np.uint32)
            low, width = lows[search], widths[search]
            at_least = np.int32(0)
            for i in range(size):
                magnitude = bits[i] & MAGNITUDE
                at_least += np.int32(magnitude >= low)
                offsets[i] = magnitude - low  # of smaller ones: more than any width
            listed, filled = keys[search], inside[search]
            for begin in range(0, size, _GROUP):
                group = offsets[begin : min(begin + _GROUP, size)]
                smallest = np.uint32(0xFFFFFFFF)
                for i in range(len(group)):
                    smallest = min(smallest, group[i])
                if smallest <= width:
                    for i in range(len(group)):
                        listed[filled] = group[i]
                        filled += np.int64(group[i] <= width)
            above[search] += at_least - (filled - inside[search])
            inside[search] = filled
    return largest <= LARGEST
