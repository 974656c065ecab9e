"""Trimming: task vectors without the entries below a threshold."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_core.weights.merging.trimming import next_below
from fusion_kernels.loops import LARGEST, STRIP, Floats, compiled, read_row, widen
from fusion_kernels.operands import can_read, read_addresses

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo


class TrimmingKernel(CompiledFunction):
    """The rows of `trim`: entries whose magnitude is at least their expert's threshold."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve all options."""
        return operands.base is not None and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Trim one piece."""
        parts = read_addresses(piece, relative=True)
        trimmed = torch.empty((len(piece.names), *piece.shape))
        is_finite = _trim(
            parts.experts,
            parts.kinds,
            parts.modes,
            parts.base,
            parts.base_kind,
            parts.count,
            trim_bounds(piece.state),
            trimmed.view(len(piece.names), -1).numpy(),
        )
        return trimmed if is_finite else None


def trim_bounds(thresholds: torch.Tensor) -> Floats:
    """Return the largest magnitude of each expert that is dropped, of shape (experts,)."""
    return _trim_bounds(tuple(thresholds.tolist()))


@lru_cache
def _trim_bounds(thresholds: tuple[float, ...]) -> Floats:
    exact = torch.tensor(thresholds, dtype=torch.float64)
    bounds: Floats = next_below(exact, torch.float32).numpy()
    return bounds


@compiled
def trim_row(row: Floats, bound: np.float32, size: int) -> None:
    """Zero the entries that are no larger than the bound."""
    for i in range(size):
        row[i] = row[i] if abs(row[i]) > bound else np.float32(0)


@compiled
def _trim(  # noqa: PLR0913, PLR0917 - the operands of a loop
    experts: np.ndarray,
    kinds: np.ndarray,
    modes: np.ndarray,
    base_address: int,
    base_kind: int,
    count: int,
    bounds: Floats,
    trimmed: np.ndarray,
) -> bool:
    """Trim a piece; False if an operand is not finite."""
    base = np.empty(STRIP, np.float32)
    largest = np.uint32(0)
    for start in range(0, count, STRIP):
        size = min(STRIP, count - start)
        widen(base_address, base_kind, start, base, size)
        for number in range(len(experts)):
            row = trimmed[number, start : start + size]
            row_largest = read_row(
                experts[number], kinds[number], modes[number], base, start, row, size
            )
            largest = max(largest, row_largest)
            trim_row(row, bounds[number], size)
    return largest <= np.uint32(LARGEST)
