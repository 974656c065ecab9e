"""WUDI (arXiv:2503.08099): the task vector that interferes least with the experts' subspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights import sum_in_order
from fusion_spectral.config import WudiConfig
from fusion_spectral.descent import descend
from fusion_spectral.matrixwise import MatrixwiseMerge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Precision of fp32, for fp64 too: Gram matrices make vectors orthogonal to about fp32 only.
_EPSILON = torch.finfo(torch.float32).eps


class Wudi(MatrixwiseMerge[WudiConfig]):
    """Descend from the sum to the task vector that interferes least (WUDI, arXiv:2503.08099).

    Formula: base + tau, where Adam lowers sum over k of |(tau - tau_k) tau_k'|^2 / |tau_k|^2 from
    the sum of a matrix's task vectors (out, in). The small number of steps regularises: the minimum
    itself is another method. All other tensors are averaged.
    Options: `steps` (300, as in the paper; FusionBench's configuration has 400), `lr` (distance per
    step; 1e-5), `matrices` (`all`). `lr` is absolute: it suits task vectors with entries of about
    1e-4, as in the paper's models.
    Data: none. Cost: `steps` products (out, in) x (in, in) per matrix, and memory for G below.

    The gradient is 2 (tau G - B), with G = sum of tau_k' tau_k / |tau_k|^2 and B = sum of tau_k
    tau_k' tau_k / |tau_k|^2, so a step takes one product instead of 2 K. For tau = S + d, with S
    the sum, it is computed as 2 (d G + (S G - B)), because Adam moves as far for a gradient that is
    rounding as for any other. For the same reason, rows of S whose gradient is rounding stay as
    they are. The sum of orthogonal task vectors, which `orthogonalise` makes, is the minimum.
    """

    config_class = WudiConfig
    pieces_held, squares = (8.7, 2), (2.5, 0)

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the number of inputs: G is (in, in)."""
        return shape[1]

    def combine(self, rows: Tensor) -> Tensor:
        """Descend from the sum."""
        squares = rows.square().sum(dim=(1, 2))
        shares = torch.where(squares > 0, 1 / squares, 0)
        total = sum_in_order(rows)
        gram, slope = rows.new_zeros(rows.shape[2], rows.shape[2]), torch.zeros_like(total)
        terms = rows.new_zeros(rows.shape[1], 1)
        for row, share in zip(rows, shares, strict=True):
            product, others = row.mT @ row, total - row
            slope += others @ product * share
            gram += product * share
            terms += others.norm(dim=1, keepdim=True)
        slope.masked_fill_(_is_rounding(slope, terms), 0)
        change = descend(
            torch.zeros_like(total),
            lambda position: torch.addmm(slope, position, gram).mul_(2),
            steps=self.config.steps,
            lr=self.config.lr,
        )
        return change.add_(total)


def _is_rounding(slope: Tensor, terms: Tensor) -> Tensor:
    """Return which rows of `slope` (out, in) are zero up to rounding, as booleans (out, 1).

    A row of S G - B is the sum over k of r_k M_k. r_k is a row of S - tau_k, and M_k = tau_k' tau_k
    / |tau_k|^2 has a norm of at most 1. `terms` (out, 1) are sums of |r_k|. Rounding the entries of
    task vectors by epsilon / 2 changes M_k by at most epsilon and r_k by epsilon / 2 of its terms,
    so rounding moves the row by less than 2 epsilon times `terms`. Where task vectors interfere,
    the row is at least about 1 / in of `terms`.
    """
    lengths: Tensor = slope.norm(dim=1, keepdim=True)
    return lengths <= 2 * _EPSILON * terms
