"""Experts' weights and task vectors as sources, and solved tensors as part of a lazy merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fusion_core import show_notes_on
from fusion_core.errors import FusionError
from fusion_core.weights import (
    AlignedSource,
    Kernel,
    Linear,
    MergedSource,
    Operands,
    StateDictSource,
    WeightSource,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from fusion_core import ModelPool, Piece, RunContext, TaskPool

_SOLVED = "solved"
ValueT = TypeVar("ValueT")


def tasks_of(context: RunContext) -> TaskPool[Any]:
    """Return a run's tasks; raises `FusionError` if it has none."""
    if context.tasks is None:
        raise FusionError("this method needs tasks with unlabeled data")
    return context.tasks


def track_experts(
    label: str,
    values: Iterable[tuple[str, ValueT]],
    pool: ModelPool[Any],
    context: RunContext,
) -> Iterator[tuple[str, ValueT]]:
    """Yield one value per expert and show progress, without keeping a value alive."""
    track = context.progress.track(label, total=len(pool.experts), unit="experts")
    with track as advance, show_notes_on(advance):
        for expert, value in values:
            yield expert, value
            del value  # else it stays in memory until the next one is computed
            advance(1, note=expert)


def weights_of(pool: ModelPool[Any], model: WeightSource, context: RunContext) -> WeightSource:
    """Return a model's weights: fp32 or wider, the base added to differences, NaN refused."""
    operands = Operands(pool.base, {model.describe(): model}, finite=context.finite)
    return MergedSource(Linear((1.0,), relative=False), operands)


class _TaskVector(Kernel):
    """The first expert's difference from the base."""

    def merge(self, piece: Piece) -> Tensor:
        return piece.task_vectors[0]


def task_vector_of(pool: ModelPool[Any], model: WeightSource, context: RunContext) -> WeightSource:
    """Return a model's difference from the base: fp32 or wider, NaN refused."""
    operands = Operands(pool.base, {model.describe(): model}, finite=context.finite)
    return MergedSource(_TaskVector(), operands)


@dataclass(frozen=True)
class Solved(Kernel):
    """Some tensors as they were solved, and all others as another kernel merges them."""

    names: frozenset[str]
    rest: Kernel

    def merge(self, piece: Piece) -> Tensor:
        """Return a solved piece, or merge it."""
        if piece.info.name not in self.names:
            return self.rest.merge(piece)
        return piece.extra(_SOLVED)  # noqa: S610 - not Django's


def merge_solved(
    solved: Mapping[str, Tensor],
    rest: Kernel,
    pool: ModelPool[Any],
    context: RunContext,
    extras: Mapping[str, WeightSource] | None = None,
) -> WeightSource:
    """Return the lazy merge with solved tensors, and `rest` for all others."""
    source = StateDictSource(solved, label="the solved tensors")
    names = frozenset(pool.layout.unpack(source).infos)
    extras = {**(extras or {}), _SOLVED: AlignedSource(source, pool.reference)}
    return context.merge(pool, Solved(names, rest), extras=extras)


def mean_of(pool: ModelPool[Any]) -> Linear:
    """Return the kernel that averages all experts."""
    count = len(pool.experts)
    return Linear((1 / count,) * count, relative=False)
