"""The projection of OPCM (arXiv:2501.09522): what a task vector adds to those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, Transform
from fusion_core.weights import decompose
from fusion_spectral.config import ProjectConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from torch import Tensor


class Project(Matrixwise, Transform[ProjectConfig]):
    """Remove from every task vector what meets the directions of those before it (2501.09522).

    Formula: P_k(tau_k), in the order of the experts, with P_1(tau_1) = tau_1. U diag(s) V' is the
    sum of all P_j(tau_j) before k. P_k removes from tau_k its entries on the diagonal of
    U' tau_k V, and those of the block of the first r directions, the most whose singular values add
    up to at most `alpha` of all. All other tensors stay as they are.
    Options: `alpha` (fraction of the sum of singular values; 0.5), `matrices` (`all`).
    Source: arXiv:2501.09522, as in FusionBench. OPCM also divides by a factor per expert, so that
    the merge keeps the mean norm of the task vectors. These factors cancel but for the last one, so
    the pipeline `opcm` is the sum and then `rescale-norm`. Differences: the code treats only linear
    layers so. Directions in which the sum is zero do not count; the code takes arbitrary ones. At
    `alpha: 1` all directions count; in the code, none.
    Data: none. Cost: one eigendecomposition of the smaller Gram matrix per matrix and expert.
    """

    config_class = ProjectConfig
    other_tensors = "left as they are"
    pieces_held, squares = (8, 2.3), (10, 0)

    def rows(self, piece: Piece) -> Tensor:
        """Return projected task vectors of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        if not self.decomposes(rows):
            return rows
        projected = rows.clone()
        total = torch.zeros_like(rows[0])
        for row in projected:
            row.sub_(self._find_common(row, total))
            total.add_(row)
        return projected

    def _find_common(self, row: Tensor, total: Tensor) -> Tensor:
        """Return what the projection removes from a task vector (m, n)."""
        parts = decompose(total)
        sums = parts.values.double().cumsum(0)
        count = int((sums <= self.config.alpha * sums[-1:]).sum())
        entries = parts.left.mT @ row @ parts.right
        removed = entries.diagonal().diag()
        removed[:count, :count] = entries[:count, :count]
        return parts.left @ removed @ parts.right.mT
