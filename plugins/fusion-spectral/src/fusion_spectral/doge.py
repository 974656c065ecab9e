"""DOGE (arXiv:2501.01230): task arithmetic with a correction outside the shared subspace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, TensorwiseAlgorithm, expert_values
from fusion_core.weights import Scope, broadcast_per_expert, decompose, joint_rank, sum_in_order
from fusion_spectral.config import DogeConfig
from fusion_spectral.descent import descend
from fusion_spectral.matrixwise import Matrixwise, mean
from fusion_thresholds import TrimSurvey

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion_core import Scan


class Doge(Matrixwise, TensorwiseAlgorithm[DogeConfig]):
    """Sum masked task vectors with a correction learned outside the shared subspace (2501.01230).

    Formula: base + sum of l_k m_k (tau_k + d), with l_k = scale / |tau_k|. The mask m_k has the
    `density` largest entries of tau_k, with one threshold per expert over all matrices. From d = 0,
    Adam lowers the conflict sum over j of |row sums of tau_j * (tau_j - sum over k of l_k (tau_k +
    d))|^2, without the gradient's part in the shared subspace. The largest rank / `subspace` left
    vectors of the experts' largest rank / K left vectors, joined, span that subspace. All other
    tensors are averaged.
    Options: `scale` (norm; 0.07), `density` (fraction of entries; 0.3), `subspace` (divisor of the
    rank; 6), `steps` (400), `lr` (distance per step; 1e-4), `matrices` (`all`). `scale` and `lr`
    are absolute: if the norms of task vectors are below `scale`, or their entries below `lr`, the
    merge moves further than the experts.
    Source: arXiv:2501.01230, as in the authors' code (DOGE TA), which leaves tensors outside its
    encoder at the base. Here every matrix takes part. The rank is that of all task vectors joined:
    min(m, n) for experts of full rank, as in the code, and about the sum of the ranks of adapters.
    A sixth of min(m, n) would contain all directions of adapters, with nothing left to learn. An
    expert without a task vector in a matrix adds nothing to it.
    Data: none. Cost: `steps` passes over all task vectors of a matrix, held in memory, one
    eigendecomposition per expert, and one for the rank.
    """

    config_class = DogeConfig
    pieces_held, squares = (5.7, 4.8), (1, 0)
    scope = Scope.MODEL  # thresholds are over all matrices

    def survey(self, scan: Scan) -> TrimSurvey:
        """Return the thresholds over all matrices."""
        matrices = replace(scan, infos=[info for info in scan.infos if self.takes(info.shape)])
        densities = expert_values(self.config.density, [*scan.operands.experts], "density")
        return TrimSurvey.of(matrices, densities, majority=False)

    def merge(self, piece: Piece) -> Tensor:
        """Learn the correction, mask and sum."""
        rows = piece.task_vectors
        if not self.decomposes(rows):
            return mean(rows).add_(piece.base)
        norms = torch.linalg.matrix_norm(rows)[:, None, None]
        scales = expert_values(self.config.scale, piece.names, "scale")
        targets = broadcast_per_expert(torch.tensor(scales, dtype=torch.float64), rows)
        shares = torch.where(norms > 0, norms.reciprocal() * targets, 0)
        correction = descend(
            torch.zeros_like(piece.base),
            _conflict_gradient(rows, shares, self._shared_subspace(rows)),
            steps=self.config.steps,
            lr=self.config.lr,
        )
        state: TrimSurvey = piece.state
        masks = state.trim(rows).ne_(0)
        return sum_in_order((rows + correction) * masks * shares).add_(piece.base)

    def _shared_subspace(self, rows: Tensor) -> Tensor:
        """Return orthonormal directions of the outputs, (m, rank / subspace)."""
        rank = joint_rank(rows)
        per_expert = max(1, rank // len(rows))
        joined = torch.cat([decompose(row).largest(per_expert).left for row in rows], dim=1)
        return decompose(joined).left[:, : rank // self.config.subspace]


def _conflict_gradient(rows: Tensor, shares: Tensor, shared: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the conflict's gradient by the correction, without its part in `shared`.

    It goes expert by expert: all of them at once would need more memory, and twice the time.
    """
    share = sum_in_order(shares)
    fixed = (rows * (rows - sum_in_order(rows * shares))).sum(dim=2)
    product = torch.empty_like(rows[0])

    def gradient(correction: Tensor) -> Tensor:
        corrected = [torch.mul(row, correction, out=product).sum(dim=1) for row in rows]
        conflicts = (fixed - share * torch.stack(corrected)).mul_(-2 * share)
        slope = torch.zeros_like(correction)
        for row, conflict in zip(rows, conflicts, strict=True):
            slope.addcmul_(row, conflict[:, None])
        return slope.addmm_(shared, shared.mT @ slope, alpha=-1)

    return gradient
