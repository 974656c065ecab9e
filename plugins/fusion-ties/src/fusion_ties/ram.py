"""RAM and RAM+ (reinforced agent merging, arXiv:2601.13572): average only the shared changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorwiseAlgorithm, expert_values
from fusion_core.weights import Piece, Scan, Scope, broadcast_per_expert, sum_in_order
from fusion_ties.config import RamConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Ram(TensorwiseAlgorithm[RamConfig]):
    """Keep the changes of one expert whole, and average those of several (RAM, arXiv:2601.13572).

    Formula: base + sum of c_k tau_k over the experts that changed an entry, which are those with
    |tau_k| > epsilon. c_k is 1 / n where n > 1 experts changed it, and 1 + r * min(rho_k, alpha)
    where expert k alone did. rho_k is the number of entries that k shares, divided by the number
    that it alone changed. Entries of at most epsilon count as unchanged.
    Options: `epsilon` (magnitude; 1e-5), `r` (factor; 0, which is RAM. RAM+ has 0.1), `alpha`
    (largest ratio; 0.2), `scope` (ratios of the `model` or of every `tensor`; `model`).
    Source: arXiv:2601.13572. mergekit's `ram` is this method, and its `ramplus_tl` is `r: 0.1` with
    `scope: tensor`. The authors' code caps the ratio at 1.
    Shapes: any. Data: none. Cost: one pass, and one more for `r` above 0.
    """

    config_class = RamConfig
    pieces_held = (4, 4)

    @property
    def scope(self) -> Scope:
        """Survey what the ratios are of, or nothing if no entry is enlarged."""
        return Scope(self.config.scope) if self.config.enlarges else Scope.NONE

    def survey(self, scan: Scan) -> Tensor:
        """Return the factor of the entries that one expert alone changed, of shape (experts,)."""
        names = [*scan.operands.experts]
        zeros = torch.zeros(2, len(names), dtype=torch.int64)
        shared, unique = scan(_Changes(self._epsilon(names)), torch.add, zeros)
        ratio = shared.double() / unique.clamp_min(1)
        largest, factor = (
            torch.tensor(expert_values(value, names, option), dtype=torch.float64)
            for option, value in (("alpha", self.config.alpha), ("r", self.config.r))
        )
        return 1 + factor * torch.minimum(ratio, largest)

    def merge(self, piece: Piece) -> Tensor:
        """Average the shared changes of one piece, and add all of them to the base."""
        rows = piece.task_vectors
        changed = _find_changes(rows, self._epsilon(piece.names))
        count = changed.sum(0)
        shares = rows.where(changed, 0) / count.clamp_min(1)
        if self.config.enlarges:
            enlarged = shares * broadcast_per_expert(piece.state, rows)
            shares = enlarged.where(count == 1, shares)
        return sum_in_order(shares).add_(piece.base)

    def _epsilon(self, names: Sequence[str]) -> tuple[float, ...]:
        return expert_values(self.config.epsilon, names, "epsilon")


@dataclass(frozen=True)
class _Changes:
    """The entries of a block that each expert shares, and that it alone changed: (2, experts)."""

    epsilon: tuple[float, ...]

    def __call__(self, piece: Piece) -> Tensor:
        changed = _find_changes(piece.task_vectors, self.epsilon)
        count = changed.sum(0)
        both = torch.stack([changed & (count > 1), changed & (count == 1)])
        return both.unsqueeze(-1).flatten(2).sum(-1).cpu()


def _find_changes(rows: Tensor, epsilon: Sequence[float]) -> Tensor:
    """Return where task vectors exceed the magnitude of each expert."""
    return rows.abs() > broadcast_per_expert(torch.tensor(epsilon, dtype=torch.float64), rows)
