"""Sums of magnitudes before and after entries of task vectors are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion_core.weights import Piece, Scan


def l1_factors(scan: Scan, drop: Callable[[Piece], Tensor]) -> Tensor:
    """Return each expert's sum of magnitudes before `drop` over that after it, or 1 for none."""
    zeros = torch.zeros(2, len(scan.operands.experts), dtype=torch.float64)
    before, after = scan(_Magnitudes(drop), torch.add, zeros)
    return torch.where(after > 0, before / after, 1.0)


@dataclass(frozen=True)
class _Magnitudes:
    """Each expert's sum of magnitudes in a block before and after `drop`, of shape (2, experts)."""

    drop: Callable[[Piece], Tensor]

    def __call__(self, piece: Piece) -> Tensor:
        both = torch.stack([piece.task_vectors, self.drop(piece)])
        return both.double().abs().unsqueeze(-1).flatten(2).sum(-1).cpu()
