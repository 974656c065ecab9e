"""Methods that choose entries by magnitude: a band of magnitudes, the largest, TALL masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import broadcast_per_expert
from fusion_kernels.keeping import KeepingFunction
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import (
    AnyRangeFunction,
    TaskVectorFunction,
    as_floats,
    empty_result,
    read_parts,
)

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class _Band(KeepingFunction):
    """Entries between two magnitudes per expert, both included."""

    def __init__(self) -> None:
        self._keep = load_loop("choosing", "keep_band")

    def run(self, function: Any, piece: Piece, chosen: int, sums: int) -> int:  # noqa: ANN401
        """Call the loop."""
        bounds = function.__self__ if sums else piece.state
        low, high = (bound.to(torch.float32) for bound in (bounds.low, bounds.high))
        parts = read_parts(piece, relative=True)
        return self._keep(
            parts.layout, parts.scratch, low.data_ptr(), high.data_ptr(), chosen, sums
        )


class BandOfMagnitudes(_Band):
    """The rows of `band`."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Keep the entries of one piece, and rescale them."""
        chosen, factors = self.entries(function, piece), piece.state.factors
        if chosen is not None and factors is not None:
            chosen.mul_(broadcast_per_expert(factors, chosen))
        return chosen


class BandSums(_Band):
    """The sums of magnitudes that `band` needs for `rescale: l1`."""

    __call__ = _Band.sums


class TaskVectors(TaskVectorFunction):
    """All entries of the task vectors: a survey samples a few of every block."""

    def __init__(self) -> None:
        self._keep = load_loop("choosing", "keep_all")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Return the task vectors of one piece."""
        rows = torch.empty((len(piece.names), *piece.shape))
        parts = read_parts(piece, relative=True)
        return rows if self._keep(parts.layout, parts.scratch, rows.data_ptr()) else None


class LargestEntries(AnyRangeFunction, TaskVectorFunction):
    """The merge of `magmax`: the entry of largest magnitude among the task vectors."""

    def __init__(self) -> None:
        self._merge = load_loop("choosing", "merge_largest")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        parts = read_parts(piece, relative=True)
        merged = empty_result(piece)
        scale = function.__self__.config.scale
        is_finite = self._merge(parts.layout, parts.scratch, scale, merged.data_ptr())
        return merged if is_finite else None


class MaskedSum(AnyRangeFunction, TaskVectorFunction):
    """The merge of `consensus`: the sum of the task vectors where enough TALL masks agree."""

    def __init__(self) -> None:
        self._sum = load_loop("choosing", "sum_masked")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        method = function.__self__
        parts, lambdas = read_parts(piece, relative=True), as_floats(method.lambdas)
        merged = empty_result(piece)
        is_finite = self._sum(
            parts.layout,
            parts.scratch,
            lambdas.data_ptr(),
            method.k,
            method.scale,
            merged.data_ptr(),
        )
        return merged if is_finite else None
