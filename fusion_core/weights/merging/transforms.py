"""Experts whose task vectors a transform has replaced, read like any other expert.

A transform computes the rows of all experts at once, but readers ask for one expert after the
other. So each thread keeps the rows of its latest range until it reads another range.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights.merging.kernels import (
    AppliedKernel,
    CoordinatesKernel,
    Kernel,
    RowsKernel,
    Scope,
)
from fusion_core.weights.merging.piece import is_merged
from fusion_core.weights.source import LowRank, WeightSource, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from fusion_core.weights.merging.piece import Operands, Piece
    from fusion_core.weights.merging.scan import Scan
    from fusion_core.weights.source import Cut


_NONE = torch.empty(0)


class IdentityTransform(RowsKernel):
    """A transform that leaves task vectors as they are."""

    is_bounded = True

    def rows(self, piece: Piece) -> torch.Tensor:
        """Return the task vectors."""
        return piece.task_vectors


class ZeroOrigin(Kernel):
    """The origin of coordinates: zeros instead of the base."""

    is_bounded = True

    def merge(self, piece: Piece) -> torch.Tensor:
        """Return zeros without reading a model."""
        return torch.zeros(piece.shape)


class ComputedWeights(Kernel):
    """Weights that a method computed itself, in a form that the engine's checks can read."""

    def merge(self, piece: Piece) -> torch.Tensor:
        """Return the weights."""
        return piece.merged


@dataclass(frozen=True)
class RestoreKernel(Kernel):
    """base + the task vector whose coordinates were merged."""

    coordinates: CoordinatesKernel

    @property
    def cut(self) -> Cut:
        """The cut of the coordinates."""
        return self.coordinates.cut

    @property
    def scope(self) -> Scope:
        """The scope of the coordinates."""
        return self.coordinates.scope

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the coordinates' own
        """Make the survey of the coordinates."""
        return self.coordinates.survey(scan)

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Return what the coordinates need."""
        return self.coordinates.working_memory(shape, experts)

    def merge(self, piece: Piece) -> torch.Tensor:
        """Restore the task vector and add the base."""
        return self.coordinates.restore(piece).add(piece.base)


def count_compiled(source: WeightSource) -> dict[str, int]:
    """Count the tensors that compiled functions serve, by kernel, in all merges of a source."""
    counts: Counter[str] = Counter()
    for applied in applied_kernels(source):
        counts += applied.count_compiled()
    return dict(sorted(counts.items()))


def applied_kernels(source: WeightSource) -> Iterator[AppliedKernel[Any]]:
    """Yield what computes a merge, and its operands, once each."""
    parts = [part.rows if isinstance(part, TransformedExpert) else part for part in walk(source)]
    unique = {id(part): part for part in parts}.values()
    return (part for part in unique if isinstance(part, AppliedKernel))


def transform_experts(operands: Operands, kernel: RowsKernel) -> dict[str, WeightSource]:
    """Return experts with the task vectors that a kernel makes of theirs, as differences."""
    rows = TransformedRows(kernel, operands)
    return {name: TransformedExpert(rows, number) for number, name in enumerate(operands.experts)}


class _Latest(threading.local):
    """The rows that the current thread prepared and read last."""

    prepared: tuple[str | None, ...] = ()
    span: tuple[str | int, ...] = ()
    rows: torch.Tensor = _NONE


@dataclass
class TransformedRows(AppliedKernel[RowsKernel]):
    """A transform applied to operands."""

    _latest: _Latest = field(default_factory=_Latest)

    @property
    def function(self) -> Callable[[Piece], torch.Tensor]:
        """The kernel's `rows`."""
        return self.kernel.rows

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the rows of all experts in a range, on the CPU, of shape (experts, elements)."""
        latest, span, count = self._latest, (name, start, stop), len(self.operands.experts)
        if self.is_unchanged(name):
            return torch.zeros(1, dtype=self.infos[name].dtype).expand(count, stop - start)
        if latest.span != span:
            latest.span, latest.rows = (), _NONE  # free them before computing as much again
            rows = self.compute(self.function, span, rows=count)
            latest.rows = rows.reshape(count, -1).to(self.infos[name].dtype).cpu()
            latest.span = span
        return latest.rows

    def prepare(self, executor: Executor, name: str | None) -> None:
        """Prepare the operands and make the surveys, once although every expert asks for it."""
        if self._latest.prepared == (name,):
            return
        for source in self.operands.sources:
            source.prepare(executor, name)
        self.make_surveys(executor, name)
        self._latest.prepared = (name,)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_latest": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_latest": _Latest()})


class TransformedExpert(WeightSource):
    """One expert's task vector after a transform."""

    is_delta = True

    def __init__(self, rows: TransformedRows, number: int) -> None:
        self.rows, self._number = rows, number
        self._expert = list(rows.operands.experts.values())[number]
        self.infos, self.cut = rows.infos, rows.cut

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return a range of the task vector; integers and booleans are the expert's."""
        if not is_merged(self.infos[name]):
            return self._expert.read(name, start, stop)
        return self.rows.read(name, start, stop)[self._number]

    def low_rank(self, name: str) -> LowRank | None:
        """Return factors only of a tensor that no expert changed."""
        is_unchanged = self.rows.is_unchanged(name)
        return LowRank.unchanged(self.infos[name].shape) if is_unchanged else None

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """All models: a transform may read every one."""
        return self.rows.operands.sources

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Make the surveys that the transform depends on."""
        self.rows.prepare(executor, name)

    def describe(self) -> str:
        """Name the expert and the transform."""
        return f"{self._expert.describe()} after {type(self.rows.kernel).__name__}"
