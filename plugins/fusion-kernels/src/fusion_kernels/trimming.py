"""Trimming: task vectors without the entries below a threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
        return trimmed if _trim(parts, smallest_kept(piece.state, len(piece.names)), flat) else None


def smallest_kept(thresholds: torch.Tensor | None, experts: int) -> Floats:
    """Return each expert's threshold in fp32, rounded up; without thresholds zeros, which keep all.

    A threshold is a magnitude of the expert, in fp64 if a tensor of the model is.
    """
    if thresholds is None:
        return np.zeros(experts, np.float32)
    exact = thresholds.numpy()
    rounded = exact.astype(np.float32)
    return np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)


@compiled
def trim_rows(rows: Floats, thresholds: Floats, size: int) -> None:
    """Zero the entries of each row that are smaller than its threshold."""
    for expert in range(len(rows)):
        row, threshold = rows[expert], thresholds[expert]
        for i in range(size):
            row[i] = row[i] if abs(row[i]) >= threshold else ZERO


@compiled
def _trim(parts: Parts, thresholds: Floats, trimmed: Floats) -> np.bool_:
    """Trim a piece; false if an operand is not finite."""
    base = np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        for expert in range(len(rows)):
            row, threshold = rows[expert], thresholds[expert]
            target = trimmed[expert][start : start + size]
            for i in range(size):
                target[i] = row[i] if abs(row[i]) >= threshold else ZERO
    return largest <= LARGEST
