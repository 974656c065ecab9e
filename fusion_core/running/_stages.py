"""The stages of a pipeline, run: what each sees of the models, and what it returned.

A stage whose part is some of the tensors gets a pool whose models hold nothing else: it cannot
read, survey or adapt the others, whatever kind of method it is.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from fusion_core.contracts.building import named_tensors
from fusion_core.contracts.metrics import FILE as METRICS
from fusion_core.contracts.metrics import MetricsLog
from fusion_core.contracts.outline import Outline
from fusion_core.contracts.stage import Coordinates, restored, transformed
from fusion_core.errors import BrokenPluginError, FusionError
from fusion_core.running._parts import SelectedPool
from fusion_core.weights import (
    AlignedSource,
    MergedSource,
    RenamedSource,
    StateDictSource,
    WeightSource,
    as_weights,
)
from fusion_core.weights.merging.piece import MERGED, Bound, is_merged
from fusion_core.weights.merging.transformed import Computed, Unchanged
from fusion_core.weights.packing import PackedSource
from fusion_core.weights.reading.task_files import TASK_FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.pipeline import PlannedStage
    from fusion_core.planning.selection import Part
    from fusion_core.weights import TensorInfo


def run_stages(
    stages: Sequence[PlannedStage], pool: ModelPool[Any], context: RunContext
) -> WeightSource:
    """Return the lazy result of a pipeline; what it leaves out is the base's, or first expert's.

    Calibrations see the models as they were, not as transforms left them.
    """
    seen, merged = pool, pool.reference
    before: list[tuple[PlannedStage, ModelPool[Any], RunContext]] = []
    for number, stage in enumerate(stages):
        own = _context_of(stage, number, stages, context)
        if stage.kind == "transform":
            before.append((stage, seen, own))
            seen = _transformed(stage.parts, seen, own)
        else:
            models = seen if stage.kind == "merge" else pool
            merged = _in_parts(stage.parts, models, merged, partial(_run_part, stage, own))
        if stage.kind == "merge":
            for transform, models, its in reversed(before):
                merged = _restored(transform, models, merged, its)
        _keep(own, context, prefix="" if stage.kind == "merge" else f"{stage.name}.")
    return merged


def _context_of(
    stage: PlannedStage, number: int, stages: Sequence[PlannedStage], context: RunContext
) -> RunContext:
    """Return what a stage is given: tasks if it looks at them, and a state and a log of its own.

    So that two stages that drop by chance do not drop the same, each knows its place.
    """
    own = copy(context)  # not `replace`, which asks for every field
    if not stage.adapts:
        own.tasks = None
    own.side_files = {}
    own.transforms = tuple(e.as_recipe(None) for e in stages[:number] if e.kind == "transform")
    own.place, own.stage = number, stage.name
    if stage.adapts and own.bound is Bound.TENSOR:
        own.bound = Bound.MODEL
    if stage.kind != "merge" and stage.adapts:
        own.state = None if context.state is None else context.state / f"stage-{number}"
        if own.state is not None:
            own.state.mkdir(exist_ok=True)
        own.metrics = MetricsLog(None if own.state is None else own.state / METRICS)
    return own


def _keep(own: RunContext, context: RunContext, *, prefix: str) -> None:
    """Keep what a stage saved and logged; raises `FusionError` for a file that is there already."""
    if own.metrics.steps:
        own.save(METRICS, own.metrics.as_bytes())
    if context.side_files.keys() & TASK_FILES and own.side_files.keys() & TASK_FILES:
        raise FusionError(
            "two stages of the merge each make a model that is another for every task",
            hint="Use one of them.",
        )
    named = {
        name if name in TASK_FILES else f"{prefix}{name}": content
        for name, content in own.side_files.items()
    }
    if twice := named.keys() & context.side_files.keys():
        raise FusionError(
            f"two stages of the merge would write {min(twice)!r}",
            hint="Use each of them once.",
        )
    context.side_files |= named
    context.saw_tasks |= own.saw_tasks


def _transformed(
    parts: Sequence[Part], pool: ModelPool[Any], context: RunContext
) -> ModelPool[Any]:
    """Return the pool with the task vectors that a transform makes; others stay as they are."""
    if parts[0].names is None:
        return transformed(cast("Any", parts[0].algorithm), pool, context)
    found = context.transformed(pool, Unchanged())
    for part in parts:
        some = SelectedPool(pool, part.names or ())
        own = transformed(cast("Any", part.algorithm), some, context).by_name
        found = found.with_sources(
            {name: AlignedSource(own[name], each) for name, each in found.by_name.items()}
        )
    return found


def _restored(
    stage: PlannedStage, pool: ModelPool[Any], merged: WeightSource, context: RunContext
) -> WeightSource:
    """Return a merge of what a transform made, out of its coordinates if it has any."""
    if not isinstance(stage.stage, Coordinates):
        return merged

    def restore(part: Part, pool: ModelPool[Any], merged: WeightSource) -> WeightSource:
        return restored(merged, cast("Any", part.algorithm), pool, context)

    return _in_parts(stage.parts, pool, merged, restore)


def _in_parts(
    parts: Sequence[Part],
    pool: ModelPool[Any],
    before: WeightSource,
    run: Callable[[Part, ModelPool[Any], WeightSource], WeightSource],
) -> WeightSource:
    """Merge, restore or calibrate in parts; what belongs to none is as before."""
    found = before
    for part in parts:
        if part.names is None:
            return run(part, pool, before)
        some = SelectedPool(pool, part.names)
        seen = RenamedSource(before, {n: n for n in before.infos if n in part.names})
        found = AlignedSource(run(part, some, seen), found)
    return found


def _run_part(
    stage: PlannedStage,
    context: RunContext,
    part: Part,
    pool: ModelPool[Any],
    before: WeightSource,
) -> WeightSource:
    """Run a part; raises `FusionError` if it saves what another one has saved."""
    own, algorithm = copy(context), cast("Any", part.algorithm)
    own.side_files = {}
    made = (
        algorithm.run(pool, own)
        if stage.kind == "merge"
        else algorithm.calibrate(before, pool, own)
    )
    if twice := own.side_files.keys() & context.side_files.keys():
        raise FusionError(
            f"algorithm.overrides: each part of the merge would write {min(twice)!r}",
            hint="Leave the overrides out: this method does not take them.",
        )
    context.side_files |= own.side_files
    context.saw_tasks |= own.saw_tasks
    outline = algorithm.outline(pool) if stage.kind == "merge" else Outline(pool.reference.infos)
    weights = _as_source(made, outline, pool)
    made_here = weights.matrices if isinstance(weights, PackedSource) else weights
    is_known = isinstance(made_here, MergedSource) or weights in pool.by_name.values()
    if is_known or not outline.is_like(pool.reference.infos):
        return weights
    judged = context.merged(pool, Computed(), extras={MERGED: weights})
    floating = {name: name for name, info in weights.infos.items() if is_merged(info)}
    return AlignedSource(RenamedSource(judged, floating), weights)


def _as_source(
    fused: WeightSource | nn.Module, outline: Outline, pool: ModelPool[Any]
) -> WeightSource:
    """Read an algorithm's result, which may be a live model, by the outline's tensor names.

    Raises `BrokenPluginError` for a result with other names or shapes.
    """
    expected = outline.infos
    if isinstance(fused, nn.Module):
        fused = _live_source(fused, expected, pool)
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


def _live_source(
    module: nn.Module, expected: Mapping[str, TensorInfo], pool: ModelPool[Any]
) -> WeightSource:
    """Read a live model's parameters and buffers; integers that it does not name are copied."""
    named = named_tensors(pool, module)
    live = {name: each.cpu() for name, each in named.items() if name in expected}
    for name, info in pool.reference.infos.items():
        if name not in live and not info.dtype.is_floating_point:
            live[name] = pool.reference.tensor(name)
    return StateDictSource(live, label="the fused model")
