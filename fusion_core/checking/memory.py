"""An estimate of a run's peak memory, made from headers.

The methods build their lazy merge of models that have headers and no values. The largest tensors
then determine what each worker holds, because every kernel reports how many numbers it holds at
most while it computes a piece (`PieceKernel.working_memory`). A method that reads weights before it
returns its merge, or that looks at tasks or builds live models, reports its memory itself
(`Stage.held_memory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.checking._working import HeadersOnly, survey_memory, uses_kernels, working_memory
from fusion_core.contracts.context import RunContext
from fusion_core.formatting import format_bytes
from fusion_core.machine.memory import peak_memory
from fusion_core.planning.kernels import choose_kernels
from fusion_core.planning.pipeline import apply_stages
from fusion_core.weights.source import BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.checking._working import Working
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.run_plan import Plan
    from fusion_core.weights import WeightSource

#: The engine's own memory, in every merge.
_FIXED = 16 * 2**20
#: The memory of compiled kernels and of the library that loads them.
_KERNELS = 50 * 2**20
#: The measured share of all workers' peaks, except the largest, that is held at one time.
_SHARE = 0.45
#: Freed memory that the allocator keeps per worker, and more per worker that merges whole tensors.
_KEPT, _KEPT_WHOLE = 64 * 2**20, 16 * 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """An estimate of peak memory in bytes, and its parts."""

    #: all parts together
    total: int
    #: Python with torch and the plugins, as measured now
    process: int
    #: weights and buffers during the merge
    merge: int
    #: live models of methods and tasks; 0 without tasks
    live: int
    #: the merge itself, if it stays in memory
    kept: int
    #: whether the run may take more than headers can tell
    at_least: bool
    #: what headers cannot tell
    unknown: str | None
    #: the derivation of `merge`, in words
    how: str


def estimate(plan: Plan) -> Memory:
    """Estimate the peak of a run. GPU memory is not considered."""
    stored = sum(info.nbytes for info in plan.stored_infos.values())
    merge_in_memory = stored if plan.path is None else 0
    process = peak_memory()
    merged = _lazy_merge(plan)
    lazy = merged or _headers(plan).reference  # at least the reference is read and written
    needs = sorted(working_memory(lazy), key=lambda need: -need.bytes)
    workers = int(getattr(plan.resolved.executor.config, "workers", None) or 1)
    busy = list(islice(chain.from_iterable([need] * need.pieces for need in needs), workers))
    fixed = _FIXED + _KERNELS * uses_kernels(lazy)
    merge = fixed + _held_at_once(busy) + survey_memory(lazy)
    live = _live(plan)
    unknown = None
    if plan.adapts or _evaluates(plan):
        unknown = "tasks add their libraries, their data and the activations of live models"
    elif merged is None:
        unknown = f"{plan.algorithm_name} reads weights before it merges them"
    total = process + merge_in_memory + max(merge, live)
    at_least = unknown is not None
    how = _explain(busy)
    return Memory(total, process, merge, live, merge_in_memory, at_least, unknown, how)


def _held_at_once(busy: Sequence[Working]) -> int:
    """Return what all workers hold together: one at its peak, the others at a share of theirs.

    The others held from a fifth of their peak to all of it when measured (`benchmarks/memory.py`),
    because two tensors of one size may reach their peaks together. The rest of the share accounts
    for freed memory that the allocator keeps.
    """
    peaks = [need.bytes for need in busy]
    others = sum(int(_SHARE * peak + (1 - _SHARE) * min(peak, _KEPT)) for peak in peaks[1:])
    whole = sum(min(need.bytes, _KEPT_WHOLE) for need in busy if need.elements > BLOCK)
    return sum(peaks[:1]) + others + whole


def _explain(busy: Sequence[Working]) -> str:
    if not busy:
        return "no tensors"
    largest = busy[0]
    count = "1 worker" if len(busy) == 1 else f"{len(busy)} workers"
    size = format_bytes(largest.bytes)
    return f"{count}, {size} for {largest.elements:,} elements of {largest.name!r}"


def _evaluates(plan: Plan) -> bool:
    return plan.tasks is not None and plan.options.evaluate


def _live(plan: Plan) -> int:
    """Return the memory of the live models that methods and tasks use, one after the other."""
    model = max(
        # live models are in fp32, tensors stored in fp64 in fp64
        sum(max(info.dtype.itemsize, torch.float32.itemsize) * info.numel for info in infos)
        for infos in (plan.pool.reference.infos.values(), plan.outline.infos.values())
    )
    methods = [
        part.algorithm.held_memory(model, plan.aligned)
        for stage in plan.stages
        if stage.adapts or stage.modules_file is not None
        for part in stage.parts
    ]
    return max([*methods, _measured(plan)])


def _measured(plan: Plan) -> int:
    """Return the memory of a model that is measured; 0 without tasks."""
    if plan.tasks is None or not _evaluates(plan):
        return 0
    return max(
        plan.tasks.dtype_for(infos).itemsize * sum(info.numel for info in infos.values())
        for infos in (plan.pool.reference.infos, plan.stored_infos)
    )


def _lazy_merge(plan: Plan) -> WeightSource | None:
    """Return the merge of models without values, or None if a method needs more than headers."""
    if plan.adapts:
        return None
    pool = _headers(plan)
    kernels = choose_kernels(plan.plugins, pool)
    context = RunContext(seed=plan.resolved.recipe.seed, kernels=kernels)
    try:
        return apply_stages(plan.stages, pool, context)
    except Exception:  # noqa: BLE001 - a method may do anything with models that it cannot read
        return None


def _headers(plan: Plan) -> ModelPool[Any]:
    """Return the aligned pool with headers only, and the lazy merges of nested recipes."""
    merges = {
        name: _lazy_merge(nested) or HeadersOnly(nested.pool.reference)
        for name, nested in plan.nested.items()
    }
    policy = plan.resolved.recipe.alignment
    pool = plan.pool.with_sources(merges).aligned(policy) if merges else plan.aligned
    headers = {
        name: HeadersOnly(source) for name, source in pool.by_name.items() if name not in merges
    }
    return pool.with_sources(headers)
