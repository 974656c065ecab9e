"""Trimming: task vectors without the entries below a threshold."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights.merging.trimming import next_below
from fusion_kernels.loops import LARGEST, STRIP, ZERO, Floats, Parts, compiled, read_strip
from fusion_kernels.operands import TaskVectorFunction, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class TrimmedRows(TaskVectorFunction):
    """The rows of `trim`: entries whose magnitude is at least their expert's threshold."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Trim one piece."""
        parts, _tensors = read_parts(piece, relative=True)
        trimmed = torch.empty((len(piece.names), *piece.shape))
        flat = trimmed.view(len(piece.names), -1).numpy()
        return trimmed if _trim(parts, trim_bounds(piece.state), flat) else None


def trim_bounds(thresholds: torch.Tensor | None, experts: int = 0) -> Floats:
    """Return the largest magnitude of each expert that is dropped; -1, and so none, by default."""
    if thresholds is None:
        return np.full(experts, -1, np.float32)
    return _trim_bounds(tuple(thresholds.tolist()))


@lru_cache
def _trim_bounds(thresholds: tuple[float, ...]) -> Floats:
    exact = torch.tensor(thresholds, dtype=torch.float64)
    bounds: Floats = next_below(exact, torch.float32).numpy()
    return bounds


@compiled
def trim_rows(rows: Floats, bounds: Floats, size: int) -> None:
    """Zero the entries of each row that are no larger than its bound."""
    for expert in range(len(rows)):
        row, bound = rows[expert], bounds[expert]
        for i in range(size):
            row[i] = row[i] if abs(row[i]) > bound else ZERO


@compiled
def _trim(parts: Parts, bounds: Floats, trimmed: Floats) -> np.bool_:
    """Trim a piece; false if an operand is not finite."""
    base = np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        for expert in range(len(rows)):
            row, bound = rows[expert], bounds[expert]
            target = trimmed[expert][start : start + size]
            for i in range(size):
                target[i] = row[i] if abs(row[i]) > bound else ZERO
    return largest <= LARGEST
