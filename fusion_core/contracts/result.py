"""The check of an algorithm's result, before anything reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fusion_core.contracts.live_models import named_tensors
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
from fusion_core.weights.merging.transforms import ComputedWeights
from fusion_core.weights.packing import PackedSource

if TYPE_CHECKING:
    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.weights import TensorInfo


def check_result(
    fused: WeightSource | nn.Module,
    outline: Outline,
    pool: ModelPool[Any],
    context: RunContext,
) -> WeightSource:
    """Return an algorithm's result, a source or a live model, as weights.

    Weights that the algorithm computed itself are checked for NaN and outliers as the engine's own
    are. Raises `BrokenPluginError` for other names or shapes than the outline's.
    """
    if isinstance(fused, nn.Module):
        fused = _read_live(fused, outline, pool)
    if not isinstance(fused, WeightSource):
        raise BrokenPluginError(
            f"`run` of the algorithm returned a {type(fused).__name__}, not weights or a module",
            hint="Return a source, such as StateDictSource(tensors), or a module of the pool.",
        )
    expected = outline.infos
    wrong = [*fused.infos.keys() ^ expected.keys()] or [
        name for name, info in expected.items() if not _fits(fused.infos[name], info)
    ]
    if wrong:
        raise BrokenPluginError(
            f"the algorithm returned other tensors than its outline has: {len(wrong)}, "
            f"among them {min(wrong)!r}",
            hint="Return exactly the tensors that `outline` names, in its shapes, and floats for "
            "floats: by default those of `pool.reference`.",
        )
    weights = as_weights(fused, pool.base)
    computed = weights.matrices if isinstance(weights, PackedSource) else weights
    is_known = isinstance(computed, MergedSource) or weights in pool.by_name.values()
    if is_known or not outline.is_like(pool.reference.infos):
        return weights
    checked = context.merge(pool, ComputedWeights(), extras={MERGED: weights})
    floating = {name: name for name, info in weights.infos.items() if is_merged(info)}
    return AlignedSource(RenamedSource(checked, floating), weights)


def _fits(info: TensorInfo, expected: TensorInfo) -> bool:
    same_kind = info.dtype.is_floating_point == expected.dtype.is_floating_point
    return info.shape == expected.shape and same_kind


def _read_live(module: nn.Module, outline: Outline, pool: ModelPool[Any]) -> WeightSource:
    """Read a live model's tensors; copy integer tensors that it lacks from the reference."""
    named = named_tensors(pool, module)
    live = {name: tensor.cpu() for name, tensor in named.items() if name in outline.infos}
    for name, info in pool.reference.infos.items():
        if name not in live and not info.dtype.is_floating_point:
            live[name] = pool.reference.tensor(name)
    return StateDictSource(live, label="the fused model")
