"""The result of a method's own code, checked before anything reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fusion_core.contracts.building import named_tensors
from fusion_core.errors import BrokenPluginError
from fusion_core.weights import (
    AlignedSource,
    MergedSource,
    RenamedSource,
    StateDictSource,
    WeightSource,
    as_weights,
)
from fusion_core.weights.merging.piece import MERGED, is_merged
from fusion_core.weights.merging.transformed import Computed
from fusion_core.weights.packing import PackedSource

if TYPE_CHECKING:
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline


def checked_source(
    fused: WeightSource | nn.Module,
    outline: Outline,
    pool: ModelPool[Any],
    context: RunContext,
) -> WeightSource:
    """Return a method's result, which may be a live model, with the tensors of its outline.

    The engine checks weights that the method computed itself like those that the engine computes:
    for NaN and for outliers. Raises `BrokenPluginError` for other names or shapes.
    """
    weights = _as_outlined(fused, outline, pool)
    computed = weights.matrices if isinstance(weights, PackedSource) else weights
    is_known = isinstance(computed, MergedSource) or weights in pool.by_name.values()
    if is_known or not outline.is_like(pool.reference.infos):
        return weights
    judged = context.merged(pool, Computed(), extras={MERGED: weights})
    floating = {name: name for name, info in weights.infos.items() if is_merged(info)}
    return AlignedSource(RenamedSource(judged, floating), weights)


def _as_outlined(
    fused: WeightSource | nn.Module, outline: Outline, pool: ModelPool[Any]
) -> WeightSource:
    expected = outline.infos
    if isinstance(fused, nn.Module):
        fused = _read_live(fused, outline, pool)
    wrong = [*fused.infos.keys() ^ expected.keys()] or [
        name for name, info in expected.items() if fused.infos[name].shape != info.shape
    ]
    if wrong:
        raise BrokenPluginError(
            f"the algorithm returned other tensors than its outline has: {len(wrong)}, "
            f"among them {min(wrong)!r}",
            hint="Return every tensor that `outline` names, in its shape, and no other: by default "
            "those of `pool.reference`.",
        )
    return as_weights(fused, pool.base)


def _read_live(module: nn.Module, outline: Outline, pool: ModelPool[Any]) -> WeightSource:
    """Read a live model's parameters and buffers; copy integers that the model does not name."""
    named = named_tensors(pool, module)
    live = {name: tensor.cpu() for name, tensor in named.items() if name in outline.infos}
    for name, info in pool.reference.infos.items():
        if name not in live and not info.dtype.is_floating_point:
            live[name] = pool.reference.tensor(name)
    return StateDictSource(live, label="the fused model")
