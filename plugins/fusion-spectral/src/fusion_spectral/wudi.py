"""WUDI (arXiv:2503.08099): the task vector that interferes least with the experts' subspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights import in_order
from fusion_spectral.config import WudiConfig
from fusion_spectral.descent import descend
from fusion_spectral.matrixwise import MatrixwiseMerge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Wudi(MatrixwiseMerge[WudiConfig]):
    """base + tau, where Adam lowers sum over k of |(tau - tau_k) tau_k'|^2 / |tau_k|^2.

    It begins at S, the sum of a matrix's task vectors (out, in), and its few steps are the
    regularisation: the minimum itself is another method. With G = sum of tau_k' tau_k / |tau_k|^2
    and B = sum of tau_k tau_k' tau_k / |tau_k|^2 the gradient is 2 (tau G - B): the same iterates
    by one product a step in the place of 2 K. It is computed as 2 (d G + (S G - B)) for tau = S +
    d, because Adam makes as much of a gradient that is rounding as of any other. Everything else is
    averaged. The rate is not relative to the task vectors: where their entries are not about 1e-4,
    as in the paper's models, the default moves too little or too much. FusionBench's configuration
    has 400 steps, its function and the paper 300. Data: none. Cost: `steps` products (out, in) x
    (in, in) a matrix, and memory for G.
    """

    config_class = WudiConfig
    pieces_held, squares = (8.7, 2), (2.5, 0)

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the width of the squares: that of the inputs."""
        return shape[1]

    def combine(self, rows: Tensor) -> Tensor:
        """Descend from the sum."""
        squares = rows.square().sum(dim=(1, 2))
        shares = torch.where(squares > 0, 1 / squares, 0)
        total = in_order(rows)
        gram, slope = rows.new_zeros(rows.shape[2], rows.shape[2]), torch.zeros_like(total)
        for row, share in zip(rows, shares, strict=True):
            product = row.mT @ row
            slope += (total - row) @ product * share
            gram += product * share
        further = descend(
            torch.zeros_like(total),
            lambda found: torch.addmm(slope, found, gram).mul_(2),
            steps=self.config.steps,
            lr=self.config.lr,
        )
        return further.add_(total)
