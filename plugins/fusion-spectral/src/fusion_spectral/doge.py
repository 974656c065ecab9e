"""DOGE (arXiv:2501.01230): task arithmetic with a correction outside the shared subspace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, TensorwiseAlgorithm
from fusion_core.weights import Scope, Trim, decompose, in_order, is_matrix, joint_rank
from fusion_spectral.config import DogeConfig
from fusion_spectral.descent import descend
from fusion_spectral.matrixwise import Matrixwise, mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion_core import Scan


class Doge(Matrixwise, TensorwiseAlgorithm[DogeConfig]):
    """base + sum of l_k m_k (tau_k + d): masked task vectors with a learned correction d.

    l_k = scale / |tau_k|, and m_k keeps the `density` largest entries of tau_k. The correction d of
    a matrix begins at zero; Adam lowers sum over j of |row sums of tau_j * (tau_j - sum over k of
    l_k (tau_k + d))|^2, with the gradient's part in the shared subspace removed. That is spanned by
    the largest rank / `subspace` left vectors of the experts' largest rank / experts ones, side by
    side. There is one threshold per expert over all matrices. As the authors' code (DOGE TA), which
    leaves what is not a weight of its encoder at the base; here every matrix takes part, and
    everything else is averaged.

    The rank is that of all task vectors side by side: min(m, n) for experts of full rank, as in the
    code, and about the sum of the ranks of adapters. A sixth of min(m, n) would hold all directions
    of adapters, and nothing would be left to learn. An expert without a task vector in a matrix
    adds nothing to it. `scale` and `lr` are not relative to the task vectors: where their norms are
    below `scale`, or their entries below `lr`, the merge moves further than the experts. Data:
    none. Cost: `steps` passes over all task vectors of a matrix, held in memory, an
    eigendecomposition per expert, and one for the rank.
    """

    config_class = DogeConfig
    pieces_held, squares = (5.7, 4.8), (1, 0)

    @property
    def scope(self) -> Scope:
        """Thresholds are the whole model's."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Trim:
        """Find the thresholds over all matrices."""
        matrices = replace(scan, infos=[info for info in scan.infos if is_matrix(info.shape)])
        return Trim.of(matrices, self.config.density, majority=False)

    def merge(self, piece: Piece) -> Tensor:
        """Learn the correction, mask, and sum."""
        rows = piece.task_vectors
        if not is_matrix(piece.shape):
            return mean(rows).add_(piece.base)
        norms = torch.linalg.matrix_norm(rows)[:, None, None]
        shares = torch.where(norms > 0, self.config.scale / norms, 0)
        slope = _conflict_slope(rows, shares, self._shared(rows))
        start = torch.zeros_like(piece.base)
        correction = descend(start, slope, steps=self.config.steps, lr=self.config.lr)
        state: Trim = piece.state
        kept = state.kept(rows).ne_(0)
        return in_order((rows + correction) * kept * shares).add_(piece.base)

    def _shared(self, rows: Tensor) -> Tensor:
        """Return orthonormal directions of the outputs, (m, rank / subspace)."""
        rank = joint_rank(rows)
        own = max(1, rank // len(rows))
        joined = torch.cat([decompose(row).largest(own).left for row in rows], dim=1)
        return decompose(joined).left[:, : rank // self.config.subspace]


def _conflict_slope(rows: Tensor, shares: Tensor, shared: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the gradient of the conflict by the correction, less its part in `shared`."""
    share = in_order(shares)
    fixed = (rows * (rows - in_order(rows * shares))).sum(dim=2)

    def slope(correction: Tensor) -> Tensor:
        conflicts = fixed - share.squeeze(1) * (rows * correction).sum(dim=2)
        found = in_order(conflicts[:, :, None] * rows).mul_(-2 * share)
        return found - shared @ (shared.mT @ found)

    return slope
