"""How much memory a run will take, estimated from headers: how, and how far to be trusted.

The engine holds one piece a worker. A piece of n elements takes, in the dtype to compute in, a row
for each of K experts, as much again for what a method computes of them, and three more for the
base, the result and what is being read: n * (2K + 3). A method that surveys first holds as much for
its survey, and its samples and tallies. What task arithmetic and TIES took at their peaks, with
three and eight experts on one to four workers, was 0.75 to 1.12 times this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.machine.memory import peak_memory
from fusion_core.planning.dtypes import dtype_of, stored_infos
from fusion_core.weights import Cut, Scope
from fusion_core.weights.merging.applied import PieceKernel
from fusion_core.weights.merging.execution import AHEAD

if TYPE_CHECKING:
    from fusion_core.contracts.stage import Stage
    from fusion_core.planning.planned import Plan

#: What the engine and the allocator take whatever is merged, and a survey's samples an expert.
_FIXED, _SURVEY = 16 * 2**20, 3 * 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """An estimate in bytes, and what it consists of."""

    #: all of it
    total: int
    #: Python with torch and the plugins, as it is now
    process: int
    #: what is held of the weights while they are merged
    merge: int
    #: live models that tasks look at, one after the other; 0 without tasks
    live: int
    #: the merge, where it is not written
    kept: int
    #: whether the method may take more than can be told from headers
    at_least: bool
    #: how it was found, in words
    how: str


def estimate(plan: Plan) -> Memory:
    """Estimate the peak of a run; memory of a GPU is not looked at."""
    models = (plan.pool.reference.infos, plan.outline.infos)
    largest = max(sum(4 * info.numel for info in infos.values()) for infos in models)
    evaluated = plan.tasks is not None and (plan.options.evaluate or plan.adapts)
    live = 2 * largest if evaluated else 0  # built of its weights
    kept = _stored(plan) if plan.path is None else 0
    process = peak_memory()
    merge = _FIXED + workers(plan) * _piece(plan) + _surveys(plan)
    stages = "" if len(plan.stages) == 1 else f" x {len(plan.stages)} stages"
    how = (
        f"{workers(plan)} workers x {_longest(plan):,} elements x "
        f"(2 x {len(plan.pool.experts)} experts{stages} + 3)"
    )
    at_least = plan.adapts or len(_kernels(plan)) < len(_algorithms(plan))
    total = process + kept + max(merge, live)
    return Memory(total, process, merge, live, kept, at_least, how)


def _stored(plan: Plan) -> int:
    dtype = dtype_of(plan.resolved.recipe.output.dtype)
    return sum(info.nbytes for info in stored_infos(plan.outline, dtype).values())


def workers(plan: Plan) -> int:
    """Return how many workers the executor has, as far as its options say so."""
    return int(getattr(plan.resolved.executor.config, "workers", None) or 1)


def _piece(plan: Plan) -> int:
    """Return what a worker holds; an operand that is a merge itself is merged meanwhile."""
    wide = any(info.dtype is torch.float64 for info in plan.pool.reference.infos.values())
    rows = 2 * len(plan.pool.experts) * len(plan.stages) + 3  # each stage has an output of its own
    own = _longest(plan) * rows * (8 if wide else 4)
    surveyed = 1 if _scopes(plan) <= {Scope.NONE} else 2
    return own * surveyed + max(map(_piece, plan.nested.values()), default=0)


def _surveys(plan: Plan) -> int:
    surveys = {Scope.NONE: 0, Scope.MODEL: 1, Scope.TENSOR: AHEAD}
    at_once = max((surveys[scope] for scope in _scopes(plan)), default=0)
    inner = sum(map(_surveys, plan.nested.values()))
    return at_once * len(plan.pool.experts) * _SURVEY + inner


def _longest(plan: Plan) -> int:
    """Return the elements of the longest piece: the first range of a tensor is its longest."""
    pool, kernels = plan.pool, _kernels(plan)
    cuts = [source.cut for source in (pool.reference, *pool.experts.values())]
    cut = reduce(Cut.coarser, [*cuts, *(kernel.cut for kernel in kernels)])
    infos = {**pool.reference.infos, **plan.outline.infos}
    ranges = (next(cut.ranges(info)) for info in infos.values())
    return max((stop - start for start, stop in ranges), default=0)


def _scopes(plan: Plan) -> set[Scope]:
    return {kernel.scope for kernel in _kernels(plan)}


def _kernels(plan: Plan) -> list[PieceKernel]:
    """Return the algorithms that the engine runs, and that say that they are nothing more."""
    return [each for each in _algorithms(plan) if isinstance(each, PieceKernel)]


def _algorithms(plan: Plan) -> list[Stage[Any]]:
    return [part.algorithm for stage in plan.stages for part in stage.parts]
