"""PCB-Merging (parameter competition balancing, arXiv:2410.02396)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorwiseAlgorithm, expert_values
from fusion_core.weights import Piece, Scan, Scope, broadcast_per_expert, sum_in_order
from fusion_thresholds import largest_by_rank
from fusion_ties.config import PcbConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Pcb(TensorwiseAlgorithm[PcbConfig]):
    """Average task vectors by how well their entries compete (PCB-Merging, arXiv:2410.02396).

    Formula: base + scale * sum of w_k b_k c_k / sum of b_k. c_k is the task vector with its
    magnitudes clipped at both ends. The balance of an entry is exp(K * m^2) * tanh(tau_k * sum of
    tau_j), with m the clipped magnitudes scaled to [0, 1] and K experts. b_k is zero below an
    expert's `density` largest balances, and goes from 0 to 1 at the largest balance. Clipping
    bounds and thresholds are those of whole models.
    Options: `density` (fraction of entries; 0.1), `clip` (fraction of magnitudes at either end;
    0.0001), `weights` (the paper's lambda_k, one factor per expert; 1 each), `scale` (factor; 1.0).
    Source: the authors' `PCB_merge`. The paper writes softmax for exp and tanh, and leaves balances
    above the threshold unscaled. The authors' vision code clips at 0.01, and sums the tanh of
    products of scaled magnitudes. Where all balances of an expert are equal the authors' code
    divides by zero; here the expert takes no part.
    Shapes: any. Data: none. Cost: about four passes, for the order statistics of magnitudes and
    balances, and the largest balance.
    """

    config_class = PcbConfig
    pieces_held = (2, 6)
    scope = Scope.MODEL  # one vector per model

    def survey(self, scan: Scan) -> Balance:
        """Return each expert's clipping bounds, threshold and largest balance."""
        size, experts = scan.numel, [*scan.operands.experts]
        if not size:
            return Balance(*[torch.zeros(len(experts))] * 4)
        clips = expert_values(self.config.clip, experts, "clip")
        lowest = [size - int(size * clip) for clip in clips]
        highest = [size - max(int(size * (1 - clip) - 1), 0) for clip in clips]
        low, high = largest_by_rank(scan, [lowest, highest])
        balance = Balance(low, high, torch.zeros_like(low), torch.ones_like(low))
        densities = expert_values(self.config.density, experts, "density")
        counts = [max(1, size - int(size * (1 - density))) for density in densities]
        top = scan(_LargestBalance(balance), torch.maximum, torch.full_like(low, -torch.inf))
        return Balance(low, high, _threshold(scan, counts, balance), top)

    def merge(self, piece: Piece) -> Tensor:
        """Weigh and merge one piece."""
        state: Balance = piece.state
        shares = state.shares(piece)
        total = sum_in_order(state.clip(piece.task_vectors) * shares * piece.weights)
        total /= sum_in_order(shares).clamp_min_(1e-12)
        return total.mul_(self.config.scale).add_(piece.base)


@dataclass(frozen=True)
class Balance:
    """How the entries of each expert compete. All fields have shape (experts,)."""

    #: the smallest and the largest magnitude after clipping
    low: Tensor
    high: Tensor
    #: the smallest balance that takes part, and the largest
    threshold: Tensor
    top: Tensor

    def clip(self, rows: Tensor) -> Tensor:
        """Clip magnitudes; signs and zeros stay."""
        return rows.sign() * self._magnitudes(rows)

    def balances(self, piece: Piece) -> Tensor:
        """Return the balance of every entry, of the shape of `piece.task_vectors`."""
        rows = piece.task_vectors
        low, high = broadcast_per_expert(self.low, rows), broadcast_per_expert(self.high, rows)
        unit = (self._magnitudes(rows) - low) / (high - low).where(high > low, 1)
        return (len(rows) * unit.square_()).exp_() * (rows * sum_in_order(rows)).tanh_()

    def shares(self, piece: Piece) -> Tensor:
        """Return the weight of every entry, from 0 to 1."""
        balances = self.balances(piece)
        threshold, top = (
            broadcast_per_expert(self.threshold, balances),
            broadcast_per_expert(self.top, balances),
        )
        above = (balances - threshold).clamp_min_(0)
        return above / (top - threshold).where(top > threshold, 1)

    def _magnitudes(self, rows: Tensor) -> Tensor:
        return rows.abs().clamp(
            broadcast_per_expert(self.low, rows), broadcast_per_expert(self.high, rows)
        )


def _threshold(scan: Scan, counts: Sequence[int], balance: Balance) -> Tensor:
    """Return the smallest of each expert's `counts` largest balances.

    The k-th largest of n is the (n - k + 1)-th smallest.
    """
    positive = largest_by_rank(scan, [counts], _OneSign(balance, 1))[0]
    if bool((positive > 0).all()):
        return positive
    from_below = [scan.numel - count + 1 for count in counts]
    negative = largest_by_rank(scan, [from_below], _OneSign(balance, -1))[0]
    return positive.where(positive > 0, -negative)


@dataclass(frozen=True)
class _OneSign:
    """The magnitudes of the balances that have one sign (1 or -1), and zero for the others."""

    balance: Balance
    sign: int

    def __call__(self, piece: Piece) -> Tensor:
        return (self.sign * self.balance.balances(piece)).clamp_min_(0)


@dataclass(frozen=True)
class _LargestBalance:
    """The largest balance of each expert in a block."""

    balance: Balance

    def __call__(self, piece: Piece) -> Tensor:
        balances = self.balance.balances(piece).cpu().unsqueeze(-1).flatten(1)
        lowest = torch.full((len(balances), 1), -torch.inf).to(balances)
        return torch.cat([balances, lowest], dim=1).amax(1)
