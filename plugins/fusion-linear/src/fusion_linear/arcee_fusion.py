"""Arcee Fusion: the entries of one expert that matter, and the base's for all others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, TensorwiseAlgorithm
from fusion_core.weights import Piece, Scan, Scope, kth_largest_magnitudes
from fusion_linear.config import ArceeFusionConfig

if TYPE_CHECKING:
    from torch import Tensor

#: What is added to every probability before its logarithm is taken.
_FLOOR = 1e-8


class ArceeFusion(TensorwiseAlgorithm[ArceeFusionConfig]):
    """Take the expert's entries of which the importance is at least median + 1.5 * IQR.

    The importance of an entry is |expert - base| * KL(softmax(expert) || softmax(base)), softmax
    along the last dimension; median and interquartile range are the tensor's, each quantile one of
    the importances, none in between. As mergekit's `arcee_fusion` (no paper), with exact quantiles:
    mergekit draws a million entries of a larger tensor by chance, others on every run. Shapes: any.
    Data: none. Cost: two passes over base and expert.
    """

    config_class = ArceeFusionConfig
    pieces_held = (6, 3)

    @property
    def cut(self) -> Cut:
        """Rows are whole."""
        return Cut.ROW

    @property
    def scope(self) -> Scope:
        """One threshold a tensor."""
        return Scope.TENSOR

    def survey(self, scan: Scan) -> Tensor:
        """Find the threshold, of the importance's dtype."""
        if not scan.numel:
            return torch.tensor(torch.inf)
        by_rows = replace(scan, cut=scan.cut.coarser(Cut.ROW))
        ranks = [scan.numel - int(share * (scan.numel - 1)) for share in (0.25, 0.5, 0.75)]
        low, median, high = kth_largest_magnitudes(by_rows, ranks, _importances)
        threshold: Tensor = median + 1.5 * (high - low)
        return threshold[0]

    def merge(self, piece: Piece) -> Tensor:
        """Add what matters to the base."""
        importances = _importances(piece)
        taken: Tensor = piece.task_vectors * (importances >= piece.state.to(importances))
        return taken[0].add_(piece.base)


def _importances(piece: Piece) -> Tensor:
    """Return the importance of every entry, of shape (1, ...); rounding makes none negative."""
    ours, theirs = (each.softmax(-1) + _FLOOR for each in (piece.experts, piece.base))
    divergence = (ours * (ours / theirs).log()).sum(-1, keepdim=True).clamp_min(0)
    importances: Tensor = piece.task_vectors.abs() * divergence
    return importances
