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
    agreeing,
    elected_sign,
    in_order,
    kept_count,
    kth_largest_magnitudes,
    per_expert,
)
from fusion_ties.config import SceConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Selected:
    """What must be known of a tensor before one of its entries can be merged."""

    #: the smallest standard deviation over the experts that is selected
    threshold: float
    #: each expert's share of the squares of what is selected, fp64, of shape (experts,)
    shares: Tensor


class Sce(TensorwiseAlgorithm[SceConfig]):
    """base + mean of the selected entries that have the elected sign, weighted by their energy.

    Tensor by tensor: of the positions where task vectors differ, k = max(1, floor(density * n)) are
    selected, those of largest variance over the experts; equal ones are selected too. An expert's
    weight is its share of the squares of what is selected, times its `weights`. The sign of an
    entry is that of the unweighted sum, plus where that is exactly zero.

    mergekit takes floor(density * n), perhaps none; its weights are equal where the squares sum to
    less than 1e-6, and its divisor is 1e-6 at least, which changes what it makes of small task
    vectors. Here nothing depends on their size: means are taken in fp64, deviations relative to the
    largest entry. Where all experts are equal, density below 1 selects nothing, as in mergekit.
    Shapes: any. No data. One pass for the weights, and two for a density below 1.
    """

    config_class = SceConfig
    pieces_held = (5, 6)

    @property
    def scope(self) -> Scope:
        """Everything is decided in a tensor."""
        return Scope.TENSOR

    def survey(self, scan: Scan) -> Selected:
        """Find what is selected, and the experts' shares of it."""
        threshold = _threshold(scan, self.config.density)
        zeros = torch.zeros(len(scan.operands.experts), dtype=torch.float64)
        squares = scan(_Squares(threshold), torch.add, zeros)
        return Selected(threshold, squares / (squares.sum() or 1.0))

    def merge(self, piece: Piece) -> Tensor:
        """Select, elect, and merge one piece."""
        rows = _selected(piece.task_vectors, piece.state.threshold)
        sign = elected_sign(rows, 1.0)
        agree = agreeing(rows, sign).double()
        shares = per_expert(piece.state.shares, agree) * piece.weights
        total = in_order(agree * shares).mul_(sign)
        share = in_order(agree.sign_().mul_(shares))
        return (total / share.where(share != 0, 1)).to(rows).add_(piece.base)


def _deviations(rows: Tensor) -> Tensor:
    """Return each entry's standard deviation over the experts, exactly 0 where all are equal."""
    largest, smallest = rows.amax(0), rows.amin(0)
    unit = torch.maximum(largest, -smallest)
    scaled = rows / unit.where(unit > 0, 1)
    squares = in_order((scaled - in_order(scaled) / len(rows)).square_())
    return squares.div_(len(rows)).sqrt_().mul_(unit).where(largest > smallest, 0)


def _selected(rows: Tensor, threshold: float) -> Tensor:
    """Zero the positions whose deviation is below a threshold."""
    return rows if threshold == 0 else rows.where(_deviations(rows) >= threshold, 0)


def _threshold(scan: Scan, density: float) -> float:
    """Return the smallest deviation that is selected; 0 selects everything, infinity nothing."""
    if density == 1:
        return 0.0
    varying = scan(_varying, torch.add, torch.zeros((), dtype=torch.int64))
    kept = kept_count(density, int(varying)) if varying else 0
    return float(kth_largest_magnitudes(scan, kept, _row, count=1)) if kept else inf


def _row(piece: Piece) -> Tensor:
    return _deviations(piece.task_vectors).unsqueeze(0)


def _varying(piece: Piece) -> Tensor:
    return _deviations(piece.task_vectors).count_nonzero().cpu()


@dataclass(frozen=True)
class _Squares:
    """Sums the squares of what is selected of a block, to shape (experts,)."""

    threshold: float

    def __call__(self, piece: Piece) -> Tensor:
        rows = _selected(piece.task_vectors, self.threshold)
        return rows.double().square_().unsqueeze(-1).flatten(1).sum(1).cpu()
