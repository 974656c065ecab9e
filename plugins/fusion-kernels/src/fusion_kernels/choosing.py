"""Methods that choose entries by magnitude: a band of magnitudes, the largest, TALL masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import broadcast_per_expert
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import TaskVectorFunction, as_floats, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class BandOfMagnitudes(TaskVectorFunction):
    """The rows of `band`: entries between two magnitudes per expert, both included."""

    def __init__(self) -> None:
        self._keep = load_loop("choosing", "keep_band")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Keep the entries of one piece."""
        bounds = piece.state
        parts = read_parts(piece, relative=True)
        chosen = torch.empty((len(piece.names), *piece.shape))
        low, high = (bound.to(torch.float32) for bound in (bounds.low, bounds.high))
        is_finite = self._keep(
            parts.layout, parts.scratch, low.data_ptr(), high.data_ptr(), chosen.data_ptr()
        )
        if not is_finite:
            return None
        if bounds.factors is not None:
            chosen.mul_(broadcast_per_expert(bounds.factors, chosen))
        return chosen


class LargestEntries(TaskVectorFunction):
    """The merge of `magmax`: the entry of largest magnitude among the task vectors."""

    def __init__(self) -> None:
        self._merge = load_loop("choosing", "merge_largest")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        parts = read_parts(piece, relative=True)
        merged = torch.empty(piece.shape)
        scale = function.__self__.config.scale
        is_finite = self._merge(parts.layout, parts.scratch, scale, merged.data_ptr())
        return merged if is_finite else None


class MaskedSum(TaskVectorFunction):
    """The merge of `consensus`: the sum of the task vectors where enough TALL masks agree."""

    def __init__(self) -> None:
        self._sum = load_loop("choosing", "sum_masked")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        method = function.__self__
        parts, lambdas = read_parts(piece, relative=True), as_floats(method.lambdas)
        merged = torch.empty(piece.shape)
        is_finite = self._sum(
            parts.layout,
            parts.scratch,
            lambdas.data_ptr(),
            method.k,
            method.scale,
            merged.data_ptr(),
        )
        return merged if is_finite else None
