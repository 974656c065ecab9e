"""Spearman's rank correlation, and the numbers that it compares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation of two lists, from -1 to 1; 0 if one of them is constant.

    Ties get the mean of their ranks. The correlation is NaN if a value is NaN.
    """
    lists = torch.tensor([one, other], dtype=torch.float64)
    if lists.isnan().any():
        return math.nan
    ranks = torch.stack(list(map(_ranks, lists)))
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1).prod()
    return float((centred[0] @ centred[1]) / norms) if norms > 0 else 0.0


def parse_number(value: Any) -> float | None:  # noqa: ANN401 - any value of a file
    """Return the finite number that a value or a text stands for; None if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _ranks(values: Tensor) -> Tensor:
    """Return ranks from 1."""
    ordered = values.sort().values
    first = torch.searchsorted(ordered, values)
    last = torch.searchsorted(ordered, values, right=True)
    return (first + last + 1).double() / 2
