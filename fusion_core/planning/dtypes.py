"""What tensors a merge has, known from headers: as it is computed, and as it is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.weights import TensorInfo


def stored_infos(outline: Outline, dtype: torch.dtype | None) -> dict[str, TensorInfo]:
    """Describe a merge's tensors as they are stored: like the models', unless a dtype is given."""
    return {
        name: replace(info, dtype=dtype)
        if dtype is not None and info.dtype.is_floating_point
        else info
        for name, info in outline.infos.items()
    }


def infos_of_merge(
    outline: Outline, pool: ModelPool[Any], stored: torch.dtype | None
) -> dict[str, TensorInfo]:
    """Describe a merge before it is made: fp32, or fp64 where an operand is, unless rounded."""
    described = [outline.infos, *(each.infos for each in pool.by_name.values())]

    def computed(name: str) -> torch.dtype:
        if stored is not None:
            return stored
        found = (infos[name].dtype for infos in described if name in infos)
        return torch.float64 if torch.float64 in found else torch.float32

    return {
        name: replace(info, dtype=computed(name)) if info.dtype.is_floating_point else info
        for name, info in outline.infos.items()
    }


def dtype_of(name: str | None) -> torch.dtype | None:
    """Return the torch dtype of an option's value."""
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found
