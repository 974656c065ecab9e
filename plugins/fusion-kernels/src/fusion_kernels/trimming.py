"""Trimming: task vectors without the entries below a threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_kernels.keeping import KeepingFunction
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class _Trimmed(KeepingFunction):
    """Entries whose magnitude is at least their expert's threshold."""

    def __init__(self) -> None:
        self._keep = load_loop("choosing", "keep_band")

    def run(self, function: Any, piece: Piece, chosen: int, sums: int) -> int:  # noqa: ANN401
        """Call the loop."""
        thresholds = function.trimming.thresholds if sums else piece.state
        lows = smallest_kept(thresholds, len(piece.names))
        highs = torch.full_like(lows, torch.inf)
        parts = read_parts(piece, relative=True)
        return self._keep(
            parts.layout, parts.scratch, lows.data_ptr(), highs.data_ptr(), chosen, sums
        )


class TrimmedRows(_Trimmed):
    """The rows of `trim`."""

    __call__ = _Trimmed.entries


class TrimmedSums(_Trimmed):
    """The sums of magnitudes that `ties` needs for `rescale: l1`."""

    __call__ = _Trimmed.sums


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
