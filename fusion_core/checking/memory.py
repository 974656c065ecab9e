"""How much memory a run will take, estimated from headers: how, and how far to be trusted.

The methods make their lazy merge of models that have headers and no values. What each worker holds
of the largest tensors follows from that: every kernel says how many numbers it holds at most while
it computes a piece (`PieceKernel.working_memory`). A method that reads weights before it returns
its merge, or that looks at tasks, holds what it says itself (`Stage.held_memory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.checking._working import HeadersOnly, survey_memory, working_memory
from fusion_core.contracts.context import RunContext
from fusion_core.machine.memory import peak_memory
from fusion_core.planning.dtypes import dtype_of, stored_infos
from fusion_core.planning.pipeline import apply_stages
from fusion_core.shown import amount
from fusion_core.weights.source import BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.checking._working import Working
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.planned import Plan
    from fusion_core.weights import TensorInfo, WeightSource

#: What the engine takes whatever is merged.
_FIXED = 16 * 2**20
#: Of the peaks of all workers but one, the share that is held at a time: measured.
_SHARE = 0.45
#: What the allocator keeps of freed memory for each worker: of one that merges whole tensors, more.
_KEPT, _KEPT_WHOLE = 64 * 2**20, 16 * 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """An estimate in bytes, and what it consists of."""

    #: all of it
    total: int
    #: Python with torch and the plugins, as it is now
    process: int
    #: what is held of the weights while they are merged
    merge: int
    #: live models that methods and tasks look at; 0 without tasks
    live: int
    #: the merge, where it is not written
    kept: int
    #: whether the run may take more than can be told from headers
    at_least: bool
    #: what cannot be told from headers
    unknown: str | None
    #: how it was found, in words
    how: str


def estimate(plan: Plan) -> Memory:
    """Estimate the peak of a run; memory of a GPU is not looked at."""
    kept = _stored(plan) if plan.path is None else 0
    process = peak_memory()
    merged = _lazy_merge(plan)
    lazy = merged or _headers(plan).reference  # the least: it is read and written
    needs = sorted(working_memory(lazy), key=lambda each: -each.bytes)
    busy = list(islice(chain.from_iterable([need] * need.pieces for need in needs), workers(plan)))
    merge = _FIXED + _at_once(busy) + survey_memory(lazy)
    live = _live(plan)
    total = process + kept + max(merge, live)
    unknown = _unknown(plan, is_traced=merged is not None)
    return Memory(total, process, merge, live, kept, unknown is not None, unknown, _how(busy))


def _at_once(busy: Sequence[Working]) -> int:
    """Return what workers hold together: one is at its peak while the others are on their way.

    The others held from a fifth of their peak to all of it when measured (`benchmarks/memory.py`):
    two tensors of one size may reach their peaks together. The rest of the share that is counted
    stands for what the allocator keeps of freed memory.
    """
    peaks = [need.bytes for need in busy]
    beside = sum(int(_SHARE * peak + (1 - _SHARE) * min(peak, _KEPT)) for peak in peaks[1:])
    whole = sum(min(need.bytes, _KEPT_WHOLE) for need in busy if need.elements > BLOCK)
    return sum(peaks[:1]) + beside + whole


def _how(busy: Sequence[Working]) -> str:
    if not busy:
        return "no tensors"
    most = busy[0]
    count = "1 worker" if len(busy) == 1 else f"{len(busy)} workers"
    return f"{count}, {amount(most.bytes)} for {most.elements:,} elements of {most.name!r}"


def _unknown(plan: Plan, *, is_traced: bool) -> str | None:
    """Say what cannot be told from headers."""
    if plan.adapts or _evaluates(plan):
        return "tasks add their libraries, their data and the activations of live models"
    return None if is_traced else f"{plan.algorithm_name} reads weights before it merges them"


def workers(plan: Plan) -> int:
    """Return how many workers the executor has, as far as its options say so."""
    return int(getattr(plan.resolved.executor.config, "workers", None) or 1)


def _stored(plan: Plan) -> int:
    dtype = dtype_of(plan.resolved.recipe.output.dtype)
    return sum(info.nbytes for info in stored_infos(plan.outline, dtype).values())


def _evaluates(plan: Plan) -> bool:
    return plan.tasks is not None and plan.options.evaluate


def _live(plan: Plan) -> int:
    """Return what is held of live models, one after the other, by methods and by tasks."""
    models = (plan.pool.reference.infos, plan.outline.infos)
    model = max(sum(_width(info) * info.numel for info in infos.values()) for infos in models)
    stages = [stage for stage in plan.stages if stage.adapts]
    held = [
        part.algorithm.held_memory(model, len(plan.pool.experts))
        for stage in stages
        for part in stage.parts
    ]
    return max([*held, model if _evaluates(plan) else 0])


def _width(info: TensorInfo) -> int:
    """Return the bytes of an element in a live model: fp32, fp64 where it is stored in it."""
    return max(info.dtype.itemsize, torch.float32.itemsize)


def _lazy_merge(plan: Plan) -> WeightSource | None:
    """Return the merge of models that cannot be read; None if a method needs more than headers."""
    if plan.adapts:
        return None
    context = RunContext(seed=plan.resolved.recipe.seed)
    try:
        return apply_stages(plan.stages, _headers(plan), context)
    except Exception:  # noqa: BLE001 - a method may do anything with what it cannot read
        return None


def _headers(plan: Plan) -> ModelPool[Any]:
    """Return the aligned pool with headers only, and the lazy merges of nested recipes."""
    sources: dict[str, WeightSource] = {
        name: HeadersOnly(source) for name, source in plan.pool.by_name.items()
    }
    merges = {
        name: _lazy_merge(nested) or HeadersOnly(nested.pool.reference)
        for name, nested in plan.nested.items()
    }
    return plan.pool.with_sources(sources | merges).aligned(plan.resolved.recipe.alignment)
