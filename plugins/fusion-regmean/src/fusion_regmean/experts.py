"""Experts' weights as merges read them, and results beside what is merged lazily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fusion_core import noting
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
FoundT = TypeVar("FoundT")


def tasks_of(context: RunContext) -> TaskPool[Any]:
    """Return a run's tasks; raises `FusionError` if it has none."""
    if context.tasks is None:
        raise FusionError("this method needs tasks with unlabeled data")
    return context.tasks


def tracked(
    label: str,
    found: Iterable[tuple[str, FoundT]],
    pool: ModelPool[Any],
    context: RunContext,
) -> Iterator[tuple[str, FoundT]]:
    """Show progress over what is found of every expert; nothing of it is kept here."""
    track = context.progress.track(label, total=len(pool.experts), unit="experts")
    with track as advance, noting(advance):
        for expert, each in found:
            yield expert, each
            del each  # else it stays until the next expert's is there
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
    """What was solved for some tensors, and what another kernel makes of the rest."""

    names: frozenset[str]
    rest: Kernel

    def merge(self, piece: Piece) -> Tensor:
        """Return a piece of either."""
        if piece.info.name not in self.names:
            return self.rest.merge(piece)
        return piece.extra(_SOLVED)  # noqa: S610 - not Django's


def over(
    rest: Kernel,
    solved: Mapping[str, Tensor],
    pool: ModelPool[Any],
    context: RunContext,
    extras: Mapping[str, WeightSource] | None = None,
) -> WeightSource:
    """Return the lazy merge that has some tensors as they were solved, and `rest` for others."""
    source = StateDictSource(solved, label="what was solved")
    names = frozenset(pool.layout.unpacked(source).infos)
    extras = {**(extras or {}), _SOLVED: AlignedSource(source, pool.reference)}
    return context.merged(pool, Solved(names, rest), extras=extras)


def mean_of(pool: ModelPool[Any]) -> Linear:
    """Return the kernel that makes the mean of all experts."""
    count = len(pool.experts)
    return Linear((1 / count,) * count, relative=False)
