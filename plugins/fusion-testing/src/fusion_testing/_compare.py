"""Compare two models tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    State = Mapping[str, Tensor]


def differing_bytes(one: State, other: State) -> str | None:
    """Describe the first tensor whose bytes differ; return None if all are equal."""
    if one.keys() != other.keys():
        return f"tensors {sorted(one.keys() ^ other.keys())}"
    for name, ours in one.items():
        theirs = other[name]
        if ours.dtype != theirs.dtype:
            return f"tensor {name!r}: {ours.dtype} and {theirs.dtype}"
        if not torch.equal(_bits(ours), _bits(theirs)):
            count = int((_bits(ours) != _bits(theirs)).sum())
            return f"tensor {name!r}: {count} of {ours.numel()} elements"
    return None


def differing_values(one: State, other: State, *, tolerance: float) -> str | None:
    """Describe the tensor that differs most; return None if all are within the tolerance.

    Differences are relative to the tensor's largest entry, or to 1 if that is larger.
    """
    worst, description = tolerance, None
    for name, ours in one.items():
        if not ours.numel():
            continue
        ours_wide, theirs = ours.double(), other[name].double()
        size = max(float(theirs.abs().max()), 1.0)
        distance = float((ours_wide - theirs).abs().max()) / size
        if not distance <= worst:  # NaN is beyond any tolerance
            worst = distance
            description = f"tensor {name!r}, by {distance:.2g} of its largest entry"
    return description


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
