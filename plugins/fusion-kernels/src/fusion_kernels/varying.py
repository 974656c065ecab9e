"""SCE: entries that vary between experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import (
    AnyRangeFunction,
    TaskVectorFunction,
    empty_result,
    read_parts,
    weights_of,
)

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class Deviations(TaskVectorFunction):
    """Each entry's standard deviation over the experts."""

    def __init__(self) -> None:
        self._deviate = load_loop("varying", "deviate")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Return the deviations of one block, of shape (1, ...)."""
        parts = read_parts(piece, relative=True)
        deviations = torch.empty((1, *piece.shape))
        is_finite = self._deviate(parts.layout, parts.scratch, deviations.data_ptr())
        return deviations if is_finite else None


class SelectedSquares(TaskVectorFunction):
    """Each expert's sum of squares where the deviation is large."""

    def __init__(self) -> None:
        self._sum = load_loop("varying", "sum_selected")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Sum one block."""
        parts = read_parts(piece, relative=True)
        sums = torch.zeros(len(piece.names), dtype=torch.float64)
        is_finite = self._sum(parts.layout, parts.scratch, function.threshold, sums.data_ptr())
        return sums if is_finite else None


class SharedMean(AnyRangeFunction, TaskVectorFunction):
    """The merge of `sce`: the mean of selected entries that agree in sign, weighted by shares."""

    def __init__(self) -> None:
        self._merge = load_loop("varying", "merge")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Merge one piece."""
        selection = piece.state
        parts, shares = read_parts(piece, relative=True), selection.shares * weights_of(piece)
        merged = empty_result(piece)
        is_finite = self._merge(
            parts.layout, parts.scratch, selection.threshold, shares.data_ptr(), merged.data_ptr()
        )
        return merged if is_finite else None
