"""How the output of a recipe is stored: its tensors' dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import TensorInfo


def stored_infos(pool: ModelPool[Any], dtype: torch.dtype | None) -> dict[str, TensorInfo]:
    """Describe the tensors as they are stored: those of the base, or of the first expert."""
    return {
        name: replace(info, dtype=dtype)
        if dtype is not None and info.dtype.is_floating_point
        else info
        for name, info in pool.reference.infos.items()
    }


def dtype_of(name: str | None) -> torch.dtype | None:
    """Return the torch dtype of an option's value."""
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found
