"""Where experts pull entries into opposite directions, and how many entries they changed at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import TrimSurvey, sum_in_order
from fusion_report.vectors import merged_infos, scan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_core import Piece
    from fusion_core.weights import Operands

#: The share of each task vector's entries, the largest ones, that is looked at: as TIES does.
DENSITY = 0.2


@dataclass(frozen=True)
class Signs:
    """What becomes of entries that are among the largest `DENSITY` of their task vectors."""

    #: the share of each expert's entries that differ from the base at all
    changed: Sequence[float]
    #: of the entries that several experts keep, the share that they pull both ways
    conflict: float
    #: the share of all kept magnitude that pulls against the greater part of its entry
    opposed: float


def conflicts(operands: Operands) -> Signs:
    """Compare the signs of the experts' task vectors; two passes and a sample.

    A share of nothing is NaN. Trimming is that of TIES (arXiv:2306.01708): over the whole model.
    """
    scan = scan_of(operands, merged_infos(operands))
    trim = TrimSurvey.of(scan, DENSITY, majority=False)
    zero = torch.zeros(4 + len(operands.experts), dtype=torch.float64)
    shared, torn, mass, against, *changed = scan(partial(_tallied, trim=trim), torch.add, zero)
    shares = [float(count / scan.numel) for count in changed]
    return Signs(shares, float(torn / shared), float(against / mass))


def _tallied(piece: Piece, trim: TrimSurvey) -> Tensor:
    """Count entries that several keep, those pulled both ways, magnitudes, and what changed."""
    kept = trim.kept(piece.task_vectors)
    up, down = sum_in_order(kept.clamp(min=0)), -sum_in_order(kept.clamp(max=0))
    less = torch.minimum(up, down)
    shared = kept.ne(0).sum(0) > 1
    masses = ((up + down).sum(dtype=torch.float64), less.sum(dtype=torch.float64))
    sums = [shared.sum(), less.ne(0).sum(), *masses]
    changed = piece.task_vectors.flatten(1).ne(0).sum(1)
    return torch.cat([torch.stack([each.double() for each in sums]), changed.double()])
