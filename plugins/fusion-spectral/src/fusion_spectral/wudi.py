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

#: Of fp32, for fp64 too: what Gram matrices make orthogonal is not so to the last bit of fp64.
_EPSILON = torch.finfo(torch.float32).eps


class Wudi(MatrixwiseMerge[WudiConfig]):
    """base + tau, where Adam lowers sum over k of |(tau - tau_k) tau_k'|^2 / |tau_k|^2.

    It begins at S, the sum of a matrix's task vectors (out, in), and its few steps are the
    regularisation: the minimum itself is another method. With G = sum of tau_k' tau_k / |tau_k|^2
    and B = sum of tau_k tau_k' tau_k / |tau_k|^2 the gradient is 2 (tau G - B): the same iterates
    by one product per step instead of 2 K. It is computed as 2 (d G + (S G - B)) for tau = S + d,
    because Adam makes as much of a gradient that is rounding as of any other. For the same reason a
    row of S whose gradient is rounding stays as it is: the sum of orthogonal task vectors, which
    `orthogonalise` makes, is the minimum. Everything else is averaged. The rate is not relative to
    the task vectors: where their entries are not about 1e-4, as in the paper's models, the default
    moves too little or too much. FusionBench's configuration has 400 steps, its function and the
    paper 300. Data: none. Cost: `steps` products (out, in) x (in, in) per matrix, and memory for G.
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
        terms = rows.new_zeros(rows.shape[1], 1)
        for row, share in zip(rows, shares, strict=True):
            product, others = row.mT @ row, total - row
            slope += others @ product * share
            gram += product * share
            terms += others.norm(dim=1, keepdim=True)
        slope.masked_fill_(_is_rounding(slope, terms), 0)
        further = descend(
            torch.zeros_like(total),
            lambda found: torch.addmm(slope, found, gram).mul_(2),
            steps=self.config.steps,
            lr=self.config.lr,
        )
        return further.add_(total)


def _is_rounding(slope: Tensor, terms: Tensor) -> Tensor:
    """Tell which rows of `slope` (out, in) are zero up to rounding; the answer has shape (out, 1).

    A row of S G - B is the sum over k of r_k M_k: r_k is a row of S - tau_k, and M_k = tau_k' tau_k
    / |tau_k|^2 has a norm of at most 1. `terms` (out, 1) holds sums of |r_k|. Task vectors whose
    entries are rounded by epsilon / 2 change M_k by at most epsilon and r_k by epsilon / 2 of its
    terms, so that rounding moves the row by less than 2 epsilon times `terms`. Where task vectors
    interfere, the row is at least about 1 / in of `terms`.
    """
    lengths: Tensor = slope.norm(dim=1, keepdim=True)
    return lengths <= 2 * _EPSILON * terms
