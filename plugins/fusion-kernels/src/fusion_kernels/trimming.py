"""Trimming: task vectors without the entries below a threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import TaskVectorFunction, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class TrimmedRows(TaskVectorFunction):
    """The rows of `trim`: entries whose magnitude is at least their expert's threshold."""

    def __init__(self) -> None:
        self._trim = load_loop("choosing", "keep_band")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Trim one piece."""
        lows = smallest_kept(piece.state, len(piece.names))
        highs = torch.full_like(lows, torch.inf)
        parts = read_parts(piece, relative=True)
        trimmed = torch.empty((len(piece.names), *piece.shape))
        is_finite = self._trim(
            parts.layout, parts.scratch, lows.data_ptr(), highs.data_ptr(), trimmed.data_ptr()
        )
        return trimmed if is_finite else None


def smallest_kept(thresholds: torch.Tensor | None, experts: int) -> torch.Tensor:
    """Return each expert's threshold in fp32, rounded up; without thresholds zeros, which keep all.

    A threshold is a magnitude of the expert, in fp64 if a tensor of the model is.
    """
    if thresholds is None:
        return torch.zeros(experts)
    rounded = thresholds.to(torch.float32)
    if thresholds.dtype is torch.float32:
        return rounded
    above = rounded.nextafter(torch.full_like(rounded, torch.inf))
    return above.where(rounded.double() < thresholds, rounded)
