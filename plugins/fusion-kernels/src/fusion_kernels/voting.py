"""The majority sign of TIES: how many entries elect plus, and how many minus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.loops import LARGEST, STRIP, Floats, compiled, read_row, widen
from fusion_kernels.operands import can_read, read_addresses
from fusion_kernels.trimming import trim_bounds, trim_row

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo


class VotingKernel(CompiledFunction):
    """`count_votes`: positive minus negative signs of the sums over experts."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve all options."""
        return operands.base is not None and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Count one block."""
        (thresholds,) = function.args
        experts = len(piece.names)
        nothing_below = np.full(experts, -1, np.float32)
        parts = read_addresses(piece, relative=True)
        votes, is_finite = _count(
            parts.experts,
            parts.kinds,
            parts.modes,
            parts.base,
            parts.base_kind,
            parts.count,
            nothing_below if thresholds is None else trim_bounds(thresholds),
            np.array(piece.operands.weights or (1.0,) * experts, np.float32),
        )
        return torch.tensor(votes) if is_finite else None


@compiled
def _count(  # noqa: PLR0913, PLR0917 - the operands of a loop
    experts: np.ndarray,
    kinds: np.ndarray,
    modes: np.ndarray,
    base_address: int,
    base_kind: int,
    count: int,
    bounds: Floats,
    weights: Floats,
) -> tuple[int, bool]:
    """Count the votes of a block; the second value is False if an operand is not finite."""
    base, row = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    total = np.empty(STRIP, np.float32)
    largest = np.uint32(0)
    votes = 0
    for start in range(0, count, STRIP):
        size = min(STRIP, count - start)
        widen(base_address, base_kind, start, base, size)
        for number in range(len(experts)):
            row_largest = read_row(
                experts[number], kinds[number], modes[number], base, start, row, size
            )
            largest = max(largest, row_largest)
            trim_row(row, bounds[number], size)
            weight = weights[number]
            if number == 0:
                for i in range(size):
                    total[i] = row[i] * weight
            else:
                for i in range(size):
                    total[i] += row[i] * weight
        strip_votes = np.int32(0)
        for i in range(size):
            strip_votes += np.int32(total[i] > 0) - np.int32(total[i] < 0)
        votes += strip_votes
    return votes, largest <= np.uint32(LARGEST)
