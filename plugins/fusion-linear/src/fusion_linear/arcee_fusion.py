"""Arcee Fusion: copy the important entries of one expert into the base."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, TensorwiseAlgorithm
from fusion_core.weights import Piece, Scan, Scope
from fusion_linear.config import ArceeFusionConfig
from fusion_thresholds import kth_largest_magnitudes

if TYPE_CHECKING:
    from torch import Tensor

#: Added to every probability before its logarithm is taken.
_FLOOR = 1e-8


class ArceeFusion(TensorwiseAlgorithm[ArceeFusionConfig]):
    """Copy the expert's entries whose importance is an upper outlier of their tensor.

    Formula: base + tau where importance >= median + 1.5 * IQR, else base. The importance of an
    entry is |tau| * KL(softmax(expert) || softmax(base)), with softmax along the last dimension,
    which is in * k * k of a convolution unless `alignment.matrices` is `stored`. There is one
    threshold per tensor. Each quantile is one of the tensor's importances, without interpolation.
    Options: none.
    Source: mergekit's `arcee_fusion` (no paper). Here the quantiles are exact. mergekit estimates
    them for large tensors from a million random entries, which differ on every run. Here the
    divergence is computed in fp64. mergekit computes it in the dtype of the merge: in fp32 rounding
    decides where task vectors are small.
    Shapes: any. Data: none. Cost: two passes over base and expert.
    """

    config_class = ArceeFusionConfig
    pieces_held = (10, 3)
    cut = Cut.ROW  # softmax needs whole rows

    scope = Scope.TENSOR

    def survey(self, scan: Scan) -> Tensor:
        """Return the tensor's threshold, in the dtype of the importances."""
        if not scan.numel:
            return torch.tensor(torch.inf)
        by_rows = replace(scan, cut=scan.cut.coarser(Cut.ROW))
        ranks = [scan.numel - int(share * (scan.numel - 1)) for share in (0.25, 0.5, 0.75)]
        low, median, high = kth_largest_magnitudes(by_rows, ranks, _importances)
        threshold: Tensor = median + 1.5 * (high - low)
        return threshold[0]

    def merge(self, piece: Piece) -> Tensor:
        """Add the important entries of the task vector to the base."""
        importances = _importances(piece)
        important: Tensor = piece.task_vectors * (importances >= piece.state.to(importances))
        return important[0].add_(piece.base)


def _importances(piece: Piece) -> Tensor:
    """Return the importance of every entry, of shape (1, ...); rounding makes none negative.

    p and q have equal sums, so KL(p || q) is also the sum of p log(p/q) - p + q. These terms are at
    least 0. They do not cancel, as p log(p/q) does where p is near q.
    """
    expert, base = (
        values.softmax(-1, dtype=torch.float64).add_(_FLOOR)
        for values in (piece.experts, piece.base)
    )
    ratio = expert.sub_(base).div_(base)  # p/q - 1
    terms = ratio.log1p().mul_(ratio + 1).sub_(ratio).mul_(base)
    divergence = terms.sum(-1, keepdim=True).clamp_min_(0)
    return (piece.task_vectors.abs() * divergence).to(piece.task_vectors)
