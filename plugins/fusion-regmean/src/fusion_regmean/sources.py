"""Experts' weights and task vectors as sources, and solved tensors as part of a lazy merge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch

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
    from fusion_core.weights import Layout

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


class LayerTensors:
    """The weights of layers: tensors as they are stored, and the matrices in packed ones."""

    def __init__(self, source: WeightSource, pool: ModelPool[Any]) -> None:
        self._stored, self._pool = source, pool

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as it is stored, or a matrix in one."""
        source = self._stored if name in self._stored.infos else self._matrices
        return source.tensor(name)

    def matrix(self, name: str) -> Tensor:
        """Return a matrix of shape (outputs, inputs), or a tensor that holds none."""
        return self._matrices.tensor(name)

    @cached_property
    def _matrices(self) -> WeightSource:
        return self._pool.layout.unpack(self._stored)


def weights_of(pool: ModelPool[Any], model: WeightSource, context: RunContext) -> LayerTensors:
    """Return a model's weights: fp32 or wider, the base added to differences, NaN refused."""
    operands = Operands(pool.base, {model.describe(): model}, finite=context.finite)
    return LayerTensors(MergedSource(Linear((1.0,), relative=False), operands), pool)


class _TaskVector(Kernel):
    """The first expert's difference from the base."""

    def merge(self, piece: Piece) -> Tensor:
        return piece.task_vectors[0]


def task_vector_of(pool: ModelPool[Any], model: WeightSource, context: RunContext) -> LayerTensors:
    """Return a model's difference from the base: fp32 or wider, NaN refused."""
    operands = Operands(pool.base, {model.describe(): model}, finite=context.finite)
    return LayerTensors(MergedSource(_TaskVector(), operands), pool)


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
    solved: dict[str, Tensor],
    rest: Kernel,
    pool: ModelPool[Any],
    context: RunContext,
    extras: Mapping[str, WeightSource] | None = None,
) -> WeightSource:
    """Return the lazy merge with solved tensors, and `rest` for all others.

    `solved` maps names of tensors as stored, or of matrices in them, to values, and is consumed.
    """
    unsolved = _pack(solved, pool.layout)
    source = StateDictSource(solved, label="the solved tensors")
    names = frozenset(pool.layout.unpack(source).infos) - unsolved
    extras = {**(extras or {}), _SOLVED: AlignedSource(source, pool.reference)}
    return context.merge(pool, Solved(names, rest), extras=extras)


def _pack(solved: dict[str, Tensor], layout: Layout) -> set[str]:
    """Put matrices into the tensors that hold them; return the matrices that are not solved."""
    unsolved: set[str] = set()
    for name, slots in layout.slots.items():
        if name in solved or not any(slot.name in solved for slot in slots):
            continue
        matrices = {slot: solved.pop(slot.name) for slot in slots if slot.name in solved}
        shape = layout.shapes[name]
        tensor = torch.zeros(math.prod(shape), dtype=next(iter(matrices.values())).dtype)
        for slot in slots:
            if slot in matrices:
                view = slot.view(tensor[slot.start : slot.stop])
                view.copy_(matrices.pop(slot).view(view.shape))
            else:
                unsolved.add(slot.name)
        solved[name] = tensor.view(shape)
    return unsolved


def mean_of(pool: ModelPool[Any]) -> Linear:
    """Return the kernel that averages all experts."""
    count = len(pool.experts)
    return Linear((1 / count,) * count, relative=False)
