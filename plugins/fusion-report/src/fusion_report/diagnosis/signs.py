"""Measure sign conflicts between task vectors, and the shares of entries that experts changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import sum_in_order
from fusion_report.vectors import make_scan, merged_infos
from fusion_thresholds import TrimSurvey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_core import Piece
    from fusion_core.weights import Operands

#: Share of each task vector's largest entries that trimming keeps, as in TIES.
DENSITY = 0.2


@dataclass(frozen=True)
class Signs:
    """Sign conflicts among the entries that trimming to `DENSITY` keeps."""

    #: share of entries that differ from the base, one per expert
    changed: Sequence[float]
    #: the same within the tensors that an expert changed at all; NaN if it changed none
    density: Sequence[float]
    #: among entries that several experts keep, the share with both signs
    conflict: float
    #: share of the kept magnitude whose sign is opposite to the majority of its entry
    opposed: float


def measure_signs(operands: Operands) -> Signs:
    """Compare the signs of the experts' task vectors after trimming, in two passes and a sample.

    Trimming is that of TIES (arXiv:2306.01708), over the whole model. Shares of nothing are NaN.
    """
    infos = merged_infos(operands)
    trim = TrimSurvey.of(make_scan(operands, infos), DENSITY, majority=False)
    tally = partial(_tally, trim=trim)
    zero = torch.zeros(4 + len(operands.experts), dtype=torch.float64)
    tallies = torch.stack([make_scan(operands, [info])(tally, torch.add, zero) for info in infos])
    shared, conflicting, mass, against = tallies[:, :4].sum(0)
    changed = tallies[:, 4:]  # of shape (tensors, experts)
    sizes = torch.tensor([[info.numel] for info in infos], dtype=torch.float64)
    count, touched = changed.sum(0), (sizes * changed.ne(0)).sum(0)
    return Signs(
        (count / sizes.sum()).tolist(),
        (count / touched).tolist(),
        float(conflicting / shared),
        float(against / mass),
    )


def _tally(piece: Piece, trim: TrimSurvey) -> Tensor:
    """Sum over a piece: shared and conflicting entries, all and opposed magnitude, changes."""
    trimmed = trim.trim(piece.task_vectors)
    up, down = sum_in_order(trimmed.clamp(min=0)), -sum_in_order(trimmed.clamp(max=0))
    minority = torch.minimum(up, down)
    shared = trimmed.ne(0).sum(0) > 1
    masses = ((up + down).sum(dtype=torch.float64), minority.sum(dtype=torch.float64))
    sums = [shared.sum(), minority.ne(0).sum(), *masses]
    changed = piece.task_vectors.flatten(1).ne(0).sum(1)
    return torch.cat([torch.stack([value.double() for value in sums]), changed.double()])
