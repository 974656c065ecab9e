"""Weighted sums: `fusion_core.weights.Linear`, in which averages and task arithmetic end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.loops import LARGEST, STRIP, Floats, compiled, read_row, widen
from fusion_kernels.operands import can_read, read_addresses

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo


class LinearKernel(CompiledFunction):
    """base + sum of factor * task vector, or the sum of factor * expert, with constant factors."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve tensors with one number per expert."""
        linear = function.__self__
        has_base = operands.base is not None or not linear.relative
        factors = _factors(linear, info.name)
        return has_base and isinstance(factors, tuple) and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Combine one piece."""
        linear = function.__self__
        parts = read_addresses(piece, relative=linear.relative)
        factors = np.array(_factors(linear, piece.info.name), np.float32)
        merged = torch.empty(piece.shape)
        is_finite = _combine(
            parts.experts,
            parts.kinds,
            parts.modes,
            parts.base,
            parts.base_kind,
            parts.count,
            factors,
            linear.relative,
            merged.view(-1).numpy(),
        )
        return merged if is_finite else None


def _factors(linear: Any, name: str) -> Any:  # noqa: ANN401 - a tuple or a tensor
    values = linear.coefficients
    return values if isinstance(values, tuple) else values[name]


@compiled
def _combine(  # noqa: PLR0913, PLR0917 - the operands of a loop
    experts: np.ndarray,
    kinds: np.ndarray,
    modes: np.ndarray,
    base_address: int,
    base_kind: int,
    count: int,
    factors: Floats,
    add_base: bool,  # noqa: FBT001 - numba knows no keywords
    merged: Floats,
) -> bool:
    """Combine a piece; False if an operand is not finite."""
    base, row = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    largest = np.uint32(0)
    for start in range(0, count, STRIP):
        size = min(STRIP, count - start)
        total = merged[start : start + size]
        widen(base_address, base_kind, start, base, size)
        for number in range(len(experts)):
            row_largest = read_row(
                experts[number], kinds[number], modes[number], base, start, row, size
            )
            largest = max(largest, row_largest)
            factor = factors[number]
            if number == 0:
                for i in range(size):
                    total[i] = row[i] * factor
            else:
                for i in range(size):
                    total[i] += row[i] * factor
        if add_base:
            for i in range(size):
                total[i] += base[i]
    return largest <= np.uint32(LARGEST)
