"""TIES after its survey: trim, elect a sign per entry, combine the entries that have it."""

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

_ONE = 0x3F800000
_SIGN = 0x80000000


class ElectingKernel(CompiledFunction):
    """The merge of `ties`, and the merge of sparse task vectors that elects signs in the same way.

    The two differ only in where their options are, and in whether they trim.
    """

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve all options."""
        return operands.base is not None and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        method, survey = function.__self__, piece.state
        options = getattr(method, "config", method)
        experts = len(piece.names)
        nothing_below = np.full(experts, -1, np.float32)
        bounds = nothing_below if survey is None else trim_bounds(survey.thresholds)
        weights = np.array(piece.operands.weights or (1.0,) * experts, np.float32)
        parts = read_addresses(piece, relative=True)
        merged = torch.empty(piece.shape)
        is_finite = _merge(
            parts.experts,
            parts.kinds,
            parts.modes,
            parts.base,
            parts.base_kind,
            parts.count,
            bounds,
            weights,
            1.0 if survey is None else survey.tie,
            options.normalize,
            np.float32(options.scale),
            merged.view(-1).numpy(),
        )
        return merged if is_finite else None


@compiled
def elect(total: Floats, tie: float, sign: Floats, size: int) -> None:
    """Write the sign of each sum, 1 or -1; where it is zero, that of `tie`, which may be 0."""
    if tie == 0:
        for i in range(size):
            sign[i] = np.float32(total[i] > 0) - np.float32(total[i] < 0)
        return
    bits, signs = total.view(np.uint32), sign.view(np.uint32)
    one = np.uint32(_ONE)
    if tie < 0:  # an exact zero is +0: negate it, and all signs with it
        one |= np.uint32(_SIGN)
        for i in range(size):
            total[i] = np.float32(0) - total[i]
    for i in range(size):
        signs[i] = (bits[i] & np.uint32(_SIGN)) ^ one


@compiled
def _merge(  # noqa: C901, PLR0913, PLR0917 - one loop over a piece
    experts: np.ndarray,
    kinds: np.ndarray,
    modes: np.ndarray,
    base_address: int,
    base_kind: int,
    count: int,
    bounds: Floats,
    weights: Floats,
    tie: float,
    normalize: bool,  # noqa: FBT001 - numba knows no keywords
    scale: np.float32,
    merged: Floats,
) -> bool:
    """Merge a piece; False if an operand is not finite."""
    base, total = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    sign, share = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    rows = np.empty((len(experts), STRIP), np.float32)
    zero, one = np.float32(0), np.float32(1)
    largest = np.uint32(0)
    for start in range(0, count, STRIP):
        size = min(STRIP, count - start)
        widen(base_address, base_kind, start, base, size)
        for number in range(len(experts)):
            row, weight = rows[number], weights[number]
            row_largest = read_row(
                experts[number], kinds[number], modes[number], base, start, row, size
            )
            largest = max(largest, row_largest)
            trim_row(row, bounds[number], size)
            if number == 0:
                for i in range(size):
                    row[i] *= weight
                    total[i] = row[i]
            else:
                for i in range(size):
                    row[i] *= weight
                    total[i] += row[i]
        elect(total, tie, sign, size)
        for i in range(size):
            share[i] = zero
        for number in range(len(experts)):
            row, weight = rows[number], weights[number]
            for i in range(size):
                agreeing = row[i] * sign[i]
                agreeing = max(agreeing, zero)
                total[i] = agreeing if number == 0 else total[i] + agreeing
                share[i] += weight if agreeing > zero else zero
        target = merged[start : start + size]
        for i in range(size):
            value = total[i] * sign[i]
            if normalize:
                value /= share[i] if share[i] != zero else one
            target[i] = value * scale + base[i]
    return largest <= np.uint32(LARGEST)
