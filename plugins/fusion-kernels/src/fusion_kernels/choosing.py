"""Methods that choose entries by magnitude: a band of magnitudes, the largest, TALL masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import broadcast_per_expert
from fusion_kernels.loops import LARGEST, STRIP, ZERO, Floats, Parts, compiled, read_strip
from fusion_kernels.operands import TaskVectorFunction, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class BandOfMagnitudes(TaskVectorFunction):
    """The rows of `band`: entries between two magnitudes per expert, both included."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Keep the entries of one piece."""
        bounds = piece.state
        parts, _tensors = read_parts(piece, relative=True)
        chosen = torch.empty((len(piece.names), *piece.shape))
        flat = chosen.view(len(piece.names), -1).numpy()
        lows, highs = (bound.to(torch.float32).numpy() for bound in (bounds.low, bounds.high))
        if not _keep_band(parts, lows, highs, flat):
            return None
        if bounds.factors is not None:
            chosen.mul_(broadcast_per_expert(bounds.factors, chosen))
        return chosen


class LargestEntries(TaskVectorFunction):
    """The merge of `magmax`: the entry of largest magnitude among the task vectors."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        scale = np.float32(function.__self__.config.scale)
        parts, _tensors = read_parts(piece, relative=True)
        merged = torch.empty(piece.shape)
        return merged if _merge_largest(parts, scale, merged.view(-1).numpy()) else None


class MaskedSum(TaskVectorFunction):
    """The merge of `consensus`: the sum of the task vectors where enough TALL masks agree."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        method = function.__self__
        parts, _tensors = read_parts(piece, relative=True)
        merged = torch.empty(piece.shape)
        is_finite = _sum_masked(
            parts,
            np.array(method.lambdas, np.float32),
            method.k,
            np.float32(method.scale),
            merged.view(-1).numpy(),
        )
        return merged if is_finite else None


@compiled
def _keep_band(parts: Parts, lows: Floats, highs: Floats, chosen: Floats) -> np.bool_:
    """Keep the entries of a piece inside the bands; false if an operand is not finite."""
    base = np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        for expert in range(len(rows)):
            row, low, high = rows[expert], lows[expert], highs[expert]
            target = chosen[expert][start : start + size]
            for i in range(size):
                is_inside = (abs(row[i]) >= low) & (abs(row[i]) <= high)
                target[i] = row[i] if is_inside else ZERO
    return largest <= LARGEST


@compiled
def _merge_largest(parts: Parts, scale: np.float32, merged: Floats) -> np.bool_:
    """Merge a piece; false if an operand is not finite."""
    base, highest, lowest = (
        np.empty(STRIP, np.float32),
        np.empty(STRIP, np.float32),
        np.empty(STRIP, np.float32),
    )
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        highest[:] = rows[0]
        lowest[:] = rows[0]
        for expert in range(1, len(rows)):
            row = rows[expert]
            for i in range(size):
                highest[i] = max(highest[i], row[i])
                lowest[i] = min(lowest[i], row[i])
        target = merged[start : start + size]
        for i in range(size):
            chosen = highest[i] if highest[i] >= -lowest[i] else lowest[i]
            target[i] = (chosen + ZERO) * scale + base[i]  # + 0: zero has one sign
    return largest <= LARGEST


@compiled
def _sum_masked(
    parts: Parts, lambdas: Floats, least: int, scale: np.float32, merged: Floats
) -> np.bool_:
    """Merge a piece; false if an operand is not finite."""
    base, total, masks = (
        np.empty(STRIP, np.float32),
        np.empty(STRIP, np.float32),
        np.empty(STRIP, np.int32),
    )
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        total[:] = rows[0]
        for expert in range(1, len(rows)):
            row = rows[expert]
            for i in range(size):
                total[i] += row[i]
        masks[:] = 0
        for expert in range(len(rows)):
            row, factor = rows[expert], lambdas[expert]
            for i in range(size):
                others = abs(total[i] - row[i]) * factor
                masks[i] += np.int32(abs(row[i]) >= others)
        target = merged[start : start + size]
        for i in range(size):
            target[i] = (total[i] if masks[i] >= least else ZERO) * scale + base[i]
    return largest <= LARGEST
