"""What an algorithm returned, as the source that is stored: names, shapes and dtypes made certain.

It knows a pool's models and the recipe's output options, and no algorithm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_core.errors import BrokenPluginError
from fusion_core.weights import CastSource, StateDictSource, WeightSource, as_weights

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import TensorInfo


def as_source(fused: WeightSource | nn.Module, pool: ModelPool[Any]) -> WeightSource:
    """Read an algorithm's result, which may be a live model, by the pool's tensor names.

    Raises `BrokenPluginError` for a result with other names or shapes than the pool's models.
    """
    expected = pool.reference.infos
    if isinstance(fused, nn.Module):
        fused = _live_source(fused, pool)
    wrong = [*fused.infos.keys() ^ expected.keys()] or [
        name for name, info in expected.items() if fused.infos[name].shape != info.shape
    ]
    if wrong:
        raise BrokenPluginError(
            f"the algorithm returned other tensors than its models have: {len(wrong)}, "
            f"among them {min(wrong)!r}"
        )
    return as_weights(fused, pool.base)


def _live_source(module: nn.Module, pool: ModelPool[Any]) -> WeightSource:
    """Read a live model's parameters and buffers; integers that it does not name are copied."""
    named = {**dict(module.named_buffers(remove_duplicate=False)), **pool.parameters(module)}
    live = {n: value.detach().cpu() for n, value in named.items() if n in pool.reference.infos}
    for name, info in pool.reference.infos.items():
        if name not in live and not info.dtype.is_floating_point:
            live[name] = pool.reference.tensor(name)
    return StateDictSource(live, label="the fused model")


def rounded(
    fused: WeightSource, pool: ModelPool[Any], *, dtype: torch.dtype | None, finite: bool
) -> WeightSource:
    """Give every tensor the dtype to be stored in: `dtype`, or the base's; `finite` refuses NaN."""
    return CastSource(fused, stored_infos(pool, dtype), finite=finite)


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
