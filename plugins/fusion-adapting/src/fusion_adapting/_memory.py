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

#: The grains of singular components, which are taken of whole task vectors.
_BY_COMPONENT = {"rank", "component"}


def count_live_memory(
    pool: ModelPool[Any], *, storage: Storage, grain: Grain, bf16_passes: bool
) -> int:
    """Return the bytes of a `LiveMerge` of a pool, without the singular vectors of components.

    Task vectors of adapters count as factors. Full models whose differences turn out to have low
    rank take less than this.
    """
    operands = Operands(pool.base, pool.experts)

    def count(info: TensorInfo) -> int:
        wide = max(info.dtype.itemsize, torch.float32.itemsize)
        weight, base = wide * info.numel, info.dtype.itemsize * info.numel
        parts = operands.low_rank_parts(info.name)
        ranks = [None if part is None else part.rank for part in parts]
        if not info.dtype.is_floating_point or all(rank == 0 for rank in ranks):
            return weight  # no expert changed it
        if storage == "disk":
            return 2 * weight
        has_factors = storage == "auto" and is_matrix(info.shape) and grain not in _BY_COMPONENT
        most = most_directions(info.shape, len(ranks)) if has_factors else -1
        low = [rank for rank in ranks if rank is not None and rank <= most]
        factors, whole = sum(low) * sum(info.shape), len(ranks) - len(low)
        width = torch.bfloat16.itemsize if storage == "bf16" else wide
        stored = base + wide * factors + whole * width * info.numel
        if whole or not is_collected(factors, info.numel):
            return 2 * weight + stored
        live = torch.bfloat16.itemsize * info.numel if bf16_passes else weight
        return live + stored

    return sum(map(count, pool.reference.infos.values()))
