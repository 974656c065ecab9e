"""Signs that entries elect: the majority, the entries that agree, and their mean, as in TIES."""

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
from fusion_kernels.trimming import smallest_kept

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class AgreeingMean(AnyRangeFunction, TaskVectorFunction):
    """The merge of `ties`, and the merge of sparse task vectors that elects signs in the same way.

    They differ in where their options are, and in whether they trim.
    """

    def __init__(self) -> None:
        self._merge = load_loop("electing", "merge")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Merge one piece."""
        options = _options_of(function)
        experts = len(piece.names)
        survey, rescaling = (None, None) if piece.state is None else piece.state
        thresholds = smallest_kept(None if survey is None else survey.thresholds, experts)
        factors = torch.ones(experts) if rescaling is None else rescaling.to(torch.float32)
        parts, weights = read_parts(piece, relative=True), weights_of(piece)
        merged = empty_result(piece)
        is_finite = self._merge(
            parts.layout,
            parts.scratch,
            thresholds.data_ptr(),
            weights.data_ptr(),
            factors.data_ptr(),
            1.0 if survey is None else survey.tie,
            options.normalize,
            options.scale,
            merged.data_ptr(),
        )
        return merged if is_finite else None


class AgreeingEntries(TaskVectorFunction):
    """The rows of `elect`: entries that have the elected sign."""

    def __init__(self) -> None:
        self._keep = load_loop("electing", "keep")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Keep the entries of one piece."""
        tie = 1.0 if piece.state is None else piece.state
        parts, weights = read_parts(piece, relative=True), weights_of(piece)
        chosen = torch.empty((len(piece.names), *piece.shape))
        is_finite = self._keep(
            parts.layout, parts.scratch, weights.data_ptr(), tie, chosen.data_ptr()
        )
        return chosen if is_finite else None


class Votes(AnyRangeFunction, TaskVectorFunction):
    """`count_votes`: positive minus negative signs of the sums over experts."""

    def __init__(self) -> None:
        self._count = load_loop("electing", "count_votes")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Count one block."""
        (surveyed,) = function.args
        thresholds = smallest_kept(surveyed, len(piece.names))
        parts, weights = read_parts(piece, relative=True), weights_of(piece)
        ones = torch.ones(len(piece.names))
        votes = torch.empty((), dtype=torch.int64)
        is_finite = self._count(
            parts.layout,
            parts.scratch,
            thresholds.data_ptr(),
            weights.data_ptr(),
            ones.data_ptr(),
            votes.data_ptr(),
        )
        return votes if is_finite else None


def _options_of(function: Any) -> Any:  # noqa: ANN401 - a configuration or a kernel
    return getattr(function.__self__, "config", function.__self__)
