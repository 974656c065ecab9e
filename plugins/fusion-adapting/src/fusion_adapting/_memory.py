"""The memory that a live merge holds, from headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting._factored import is_collected, most_directions
from fusion_core.weights import Operands, is_matrix

if TYPE_CHECKING:
    from fusion_adapting._live_merge import Storage
    from fusion_adapting._sharing import Grain
    from fusion_core import ModelPool
    from fusion_core.weights import TensorInfo


def count_live_memory(
    pool: ModelPool[Any], *, storage: Storage, grain: Grain, bf16_passes: bool
) -> int:
    """Return the bytes of a `LiveMerge` of a pool, without the singular vectors of components.

    Task vectors count as factors if the experts are adapters. Full models whose differences turn
    out to have low rank take less than this.
    """
    operands = Operands(pool.base, pool.experts)

    def count(info: TensorInfo) -> int:
        wide = max(info.dtype.itemsize, torch.float32.itemsize)
        weight, base = wide * info.numel, info.dtype.itemsize * info.numel
        parts = operands.low_rank(info.name)
        ranks = None if parts is None else [part.rank for part in parts]
        if not info.dtype.is_floating_point or (ranks is not None and not any(ranks)):
            return weight  # no expert changed it
        if storage == "disk":
            return 2 * weight
        experts = len(pool.experts)
        is_low = (
            ranks is not None
            and is_matrix(info.shape)
            and max(ranks) <= most_directions(info.shape, experts)
        )
        if ranks is None or storage != "auto" or not is_low or grain in {"rank", "component"}:
            width = torch.bfloat16.itemsize if storage == "bf16" else wide
            return 2 * weight + base + experts * width * info.numel
        factors = sum(ranks) * sum(info.shape)
        if not is_collected(factors, info.numel):
            return 2 * weight + base + wide * factors
        live = torch.bfloat16.itemsize * info.numel if bf16_passes else weight
        return live + base + wide * factors

    return sum(map(count, pool.reference.infos.values()))
