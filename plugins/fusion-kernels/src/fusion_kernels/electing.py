"""Signs that entries elect: the majority, the entries that agree, and their mean, as in TIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_kernels.loops import (
    LARGEST,
    ONE,
    SIGN,
    STRIP,
    ZERO,
    Floats,
    Parts,
    add_weighted,
    compiled,
    read_strip,
)
from fusion_kernels.operands import TaskVectorFunction, read_parts, weights_of
from fusion_kernels.trimming import smallest_kept, trim_rows

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo

_ONE_BITS = np.uint32(0x3F800000)


class AgreeingMean(TaskVectorFunction):
    """The merge of `ties`, and the merge of sparse task vectors that elects signs in the same way.

    They differ in where their options are, and in whether they trim.
    """

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve all options but `rescale`."""
        is_rescaled = getattr(_options_of(function), "rescale", "none") != "none"
        return not is_rescaled and super().fits(function, operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        options = _options_of(function)
        survey, _factors = (None, None) if piece.state is None else piece.state
        thresholds = smallest_kept(None if survey is None else survey.thresholds, len(piece.names))
        tie = 1.0 if survey is None else survey.tie
        parts, _tensors = read_parts(piece, relative=True)
        merged = torch.empty(piece.shape)
        is_finite = _merge(
            parts,
            thresholds,
            weights_of(piece),
            tie,
            options.normalize,
            np.float32(options.scale),
            merged.view(-1).numpy(),
        )
        return merged if is_finite else None


class AgreeingEntries(TaskVectorFunction):
    """The rows of `elect`: entries that have the elected sign."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Keep the entries of one piece."""
        tie = 1.0 if piece.state is None else piece.state
        parts, _tensors = read_parts(piece, relative=True)
        chosen = torch.empty((len(piece.names), *piece.shape))
        flat = chosen.view(len(piece.names), -1).numpy()
        return chosen if _keep(parts, weights_of(piece), tie, flat) else None


class Votes(TaskVectorFunction):
    """`count_votes`: positive minus negative signs of the sums over experts."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Count one block."""
        (surveyed,) = function.args
        thresholds = smallest_kept(surveyed, len(piece.names))
        parts, _tensors = read_parts(piece, relative=True)
        votes, is_finite = _count_votes(parts, thresholds, weights_of(piece))
        return torch.tensor(votes) if is_finite else None


def _options_of(function: Any) -> Any:  # noqa: ANN401 - a configuration or a kernel
    return getattr(function.__self__, "config", function.__self__)


@compiled
def _elect(total: Floats, tie: float, size: int, sign: Floats) -> None:
    """Write the sign of each sum, 1 or -1; where it is zero, that of `tie`, which may be 0."""
    if tie == 0:
        for i in range(size):
            sign[i] = np.float32(total[i] > ZERO) - np.float32(total[i] < ZERO)
        return
    bits, signs = total.view(np.uint32), sign.view(np.uint32)
    one = _ONE_BITS
    if tie < 0:  # an exact zero is +0: negate it, and all signs with it
        one |= SIGN
        for i in range(size):
            total[i] = ZERO - total[i]
    for i in range(size):
        signs[i] = (bits[i] & SIGN) ^ one


@compiled
def _merge(  # noqa: PLR0913, PLR0917 - numba knows no keywords
    parts: Parts,
    thresholds: Floats,
    weights: Floats,
    tie: float,
    normalize: bool,  # noqa: FBT001
    scale: np.float32,
    merged: Floats,
) -> np.bool_:
    """Merge a piece; false if an operand is not finite."""
    strips = np.empty((4, STRIP), np.float32)
    base, total, sign, share = strips[0], strips[1], strips[2], strips[3]
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        trim_rows(rows, thresholds, size)
        add_weighted(rows, weights, size, total)
        _elect(total, tie, size, sign)
        share[:] = ZERO
        for expert in range(len(rows)):
            row, weight = rows[expert], weights[expert]
            for i in range(size):
                agreeing = row[i] * sign[i]
                agreeing = max(agreeing, ZERO)
                total[i] = agreeing if expert == 0 else total[i] + agreeing
                share[i] += weight if agreeing > ZERO else ZERO
        target = merged[start : start + size]
        for i in range(size):
            value = total[i] * sign[i]
            if normalize:
                value /= share[i] if share[i] != ZERO else ONE
            target[i] = value * scale + base[i]
    return largest <= LARGEST


@compiled
def _keep(parts: Parts, weights: Floats, tie: float, chosen: Floats) -> np.bool_:
    """Keep the agreeing entries of a piece; false if an operand is not finite."""
    strips = np.empty((3, STRIP), np.float32)
    base, total, sign = strips[0], strips[1], strips[2]
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    weighted = np.empty_like(rows)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        weighted[:] = rows
        add_weighted(weighted, weights, size, total)
        _elect(total, tie, size, sign)
        for expert in range(len(rows)):
            row, products = rows[expert], weighted[expert]
            target = chosen[expert][start : start + size]
            for i in range(size):
                target[i] = row[i] * (ONE if products[i] * sign[i] > ZERO else ZERO)
    return largest <= LARGEST


@compiled
def _count_votes(parts: Parts, thresholds: Floats, weights: Floats) -> tuple[int, np.bool_]:
    """Count the votes of a block; the second value is false if an operand is not finite."""
    base, total = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest, votes = np.uint32(0), 0
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        trim_rows(rows, thresholds, size)
        add_weighted(rows, weights, size, total)
        for i in range(size):
            votes += int(total[i] > ZERO) - int(total[i] < ZERO)
    return votes, largest <= LARGEST
