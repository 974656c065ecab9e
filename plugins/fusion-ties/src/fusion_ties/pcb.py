"""PCB-Merging (parameter competition balancing, arXiv:2410.02396)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorwiseAlgorithm
from fusion_core.weights import Piece, Scan, Scope, in_order, kth_largest_magnitudes, per_expert
from fusion_ties.config import PcbConfig

if TYPE_CHECKING:
    from torch import Tensor


class Pcb(TensorwiseAlgorithm[PcbConfig]):
    """base + scale * mean of the clipped task vectors, weighted by how well they compete.

    Over the whole model, with m the magnitudes of expert k's task vector, clipped at its `clip`
    smallest and largest and scaled to [0, 1], and K experts: the balance of an entry is
    exp(K * m^2) * tanh(tau_k * sum of tau_j). Each expert's balances below its `density` largest
    are zero, the others go from 0 to 1 with the largest; they weigh the mean. `weights` are the
    paper's lambda_k, which do not divide.

    This is the authors' `PCB_merge`. The paper writes softmax for exp and tanh, and keeps the
    balances as they are above the threshold; their vision code clips at 0.01, and sums the tanh of
    products of magnitudes that are scaled to [0, 1]. Where all balances of an expert are equal
    theirs divides by zero, and here it takes no part. Shapes: any. No data. About four passes:
    order statistics of the magnitudes, one or two of the balances, and their maximum.
    """

    config_class = PcbConfig
    pieces_held = (2, 6)

    @property
    def scope(self) -> Scope:
        """A model is one vector."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Balance:
        """Find each expert's clipping bounds, its threshold and its largest balance."""
        size, clip = scan.numel, self.config.clip
        if not size:
            return Balance(*[torch.zeros(len(scan.operands.experts))] * 4)
        ascending = (int(size * clip), max(int(size * (1 - clip) - 1), 0))
        low, high = kth_largest_magnitudes(scan, [size - n for n in ascending])
        balance = Balance(low, high, torch.zeros_like(low), torch.ones_like(low))
        kept = max(1, size - int(size * (1 - self.config.density)))
        top = scan(_Largest(balance), torch.maximum, torch.full_like(low, -torch.inf))
        return Balance(low, high, _threshold(scan, kept, balance), top)

    def merge(self, piece: Piece) -> Tensor:
        """Weigh, and merge one piece."""
        state: Balance = piece.state
        shares = state.shares(piece)
        total = in_order(state.clipped(piece.task_vectors) * shares * piece.weights)
        total /= in_order(shares).clamp_min_(1e-12)
        return total.mul_(self.config.scale).add_(piece.base)


@dataclass(frozen=True)
class Balance:
    """How an expert's entries compete, and what must be known of a model to say so.

    All have the shape (experts,).
    """

    #: the smallest and the largest magnitude
    low: Tensor
    high: Tensor
    #: the smallest balance that counts, and the largest
    threshold: Tensor
    top: Tensor

    def clipped(self, rows: Tensor) -> Tensor:
        """Clip magnitudes, and keep signs and zeros."""
        return rows.sign() * self._magnitudes(rows)

    def of(self, piece: Piece) -> Tensor:
        """Return the balance of every entry, of the shape of `piece.task_vectors`."""
        rows = piece.task_vectors
        low, high = (per_expert(each, rows) for each in (self.low, self.high))
        unit = (self._magnitudes(rows) - low) / (high - low).where(high > low, 1)
        return (len(rows) * unit.square_()).exp_() * (rows * in_order(rows)).tanh_()

    def shares(self, piece: Piece) -> Tensor:
        """Return what every entry weighs, from 0 to 1."""
        balances = self.of(piece)
        threshold, top = (per_expert(each, balances) for each in (self.threshold, self.top))
        above = (balances - threshold).clamp_min_(0)
        return above / (top - threshold).where(top > threshold, 1)

    def _magnitudes(self, rows: Tensor) -> Tensor:
        return rows.abs().clamp(per_expert(self.low, rows), per_expert(self.high, rows))


def _threshold(scan: Scan, k: int, balance: Balance) -> Tensor:
    """Return each expert's k-th largest balance; the k-th largest is (n - k + 1)-th smallest."""
    found = kth_largest_magnitudes(scan, k, _Side(balance, 1))
    if bool((found > 0).all()):
        return found
    below = kth_largest_magnitudes(scan, scan.numel - k + 1, _Side(balance, -1))
    return found.where(found > 0, -below)


@dataclass(frozen=True)
class _Side:
    """The balances of one sign, 1 or -1, as magnitudes; those of the other are zero."""

    balance: Balance
    sign: int

    def __call__(self, piece: Piece) -> Tensor:
        return (self.sign * self.balance.of(piece)).clamp_min_(0)


@dataclass(frozen=True)
class _Largest:
    """The largest balance of each expert in a block."""

    balance: Balance

    def __call__(self, piece: Piece) -> Tensor:
        balances = self.balance.of(piece).cpu().unsqueeze(-1).flatten(1)
        least = torch.full((len(balances), 1), -torch.inf).to(balances)
        return torch.cat([balances, least], dim=1).amax(1)
