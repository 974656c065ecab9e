"""SCE (select, calculate, erase; FuseChat, arXiv:2408.07990)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorwiseAlgorithm
from fusion_core.weights import (
    Piece,
    Scan,
    Scope,
    broadcast_per_expert,
    call_on_piece,
    sum_in_order,
)
from fusion_thresholds import (
    agreeing_magnitudes,
    count_for_density,
    elect_sign,
    kth_largest_magnitudes,
)
from fusion_ties.config import SceConfig
from fusion_ties.sums import sum_in_strips

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The selected positions of one tensor, and each expert's share of them."""

    #: the smallest standard deviation over the experts that is selected
    threshold: float
    #: each expert's share of the selected squares, fp64, of shape (experts,)
    shares: Tensor


class Sce(TensorwiseAlgorithm[SceConfig]):
    """Merge the most varying entries where signs agree, weighted by energy (arXiv:2408.07990).

    Formula: base + sum of w_k tau_k / sum of |w_k| over the selected tau_k with the elected sign.
    In each tensor with n positions where the task vectors differ, SCE selects the max(1,
    floor(density * n)) of largest variance over the experts, and all of equal variance. w_k is
    expert k's share of the selected squares, times its option `weights`. The elected sign is that
    of the unweighted sum, and plus where the sum is exactly zero.
    Options: `density` (fraction of positions; 1.0), `weights` (one factor per expert; 1 each).
    Differences: mergekit selects floor(density * n) positions, perhaps none, uses equal weights
    where the squares sum to less than 1e-6, and divides by at least 1e-6. This changes its results
    for small task vectors. Here nothing depends on their size: means and variances are in fp64,
    and a variance is computed from differences between experts. So equal variances of bf16 or fp16
    experts are equal numbers, whatever the order of the experts. Where all experts are equal, a
    density below 1 selects nothing, as in mergekit.
    Shapes: any. Data: none. Cost: two passes, and two more for a density below 1.
    """

    config_class = SceConfig
    pieces_held = (5, 6)
    scope = Scope.TENSOR
    is_bounded = True  # a mean is no larger than the entries it is of

    def survey(self, scan: Scan) -> Selection:
        """Return the selection of a tensor."""
        threshold = _threshold(scan, self.config.density)
        zeros = torch.zeros(len(scan.operands.experts), dtype=torch.float64)
        squares = scan(SelectedSquares(threshold), torch.add, zeros)
        return Selection(threshold, squares / (squares.sum() or 1.0))

    def merge(self, piece: Piece) -> Tensor:
        """Select, elect and merge one piece."""
        rows = _select(piece.task_vectors, piece.state.threshold)
        sign = elect_sign(rows, 1.0)
        agree = agreeing_magnitudes(rows, sign).double()
        shares = broadcast_per_expert(piece.state.shares, agree) * piece.weights
        total = sum_in_order(agree * shares).mul_(sign)
        share = sum_in_order(agree.sign_().mul_(shares.abs()))
        return (total / share.where(share != 0, 1)).to(rows).add_(piece.base)


def _deviations(rows: Tensor) -> Tensor:
    """Return each entry's standard deviation over the experts, exactly 0 where all are equal.

    n^2 times the variance is n times the sum of squared differences to the first expert, less the
    square of their sum. In fp64 these numbers are exact unless entries have many bits.
    """
    first = rows[0].double()
    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    for row in rows[1:]:
        difference = row.double() - first
        total += difference
        squares += difference.square_()
    count = len(rows)
    return squares.mul_(count).sub_(total.square_()).sqrt_().div_(count).to(rows.dtype)


def _select(rows: Tensor, threshold: float) -> Tensor:
    """Zero the positions whose deviation is below a threshold."""
    return rows if threshold == 0 else rows.where(_deviations(rows) >= threshold, 0)


def _threshold(scan: Scan, density: float) -> float:
    """Return the smallest selected deviation; 0 selects everything, infinity nothing."""
    if density == 1:
        return 0.0
    varying = int(scan(_count_varying, torch.add, torch.zeros((), dtype=torch.int64)))
    count = count_for_density(density, varying) if varying else 0
    return float(kth_largest_magnitudes(scan, count, deviations_of, count=1)) if count else inf


def deviations_of(piece: Piece) -> Tensor:
    """Return each entry's standard deviation over the experts, of shape (1, ...)."""
    return _deviations(piece.task_vectors).unsqueeze(0)


def _count_varying(piece: Piece) -> Tensor:
    return call_on_piece(deviations_of, piece).count_nonzero().cpu()


@dataclass(frozen=True)
class SelectedSquares:
    """Each expert's sum of squares in a block, of shape (experts,), over selected positions."""

    threshold: float

    def __call__(self, piece: Piece) -> Tensor:
        """Sum one block."""
        rows = _select(piece.task_vectors, self.threshold)
        return sum_in_strips(rows.double().square_())
