"""What one worker holds at most while it computes a tensor of a lazy merge, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.weights import WeightSource
from fusion_core.weights.merging.applied import Applied, Scope
from fusion_core.weights.merging.execution import AHEAD
from fusion_core.weights.merging.piece import is_merged, piece_shape
from fusion_core.weights.merging.transformed import TransformedExpert, TransformedRows
from fusion_core.weights.packing import PackedSource, UnpackedSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from fusion_core.weights import TensorInfo

#: What a survey keeps per expert: samples and tallies.
_SURVEY = 3 * 2**20


class HeadersOnly(WeightSource):
    """A model of which only headers are known; raises `NotReadError` when it is read."""

    def __init__(self, source: WeightSource) -> None:
        self.infos, self.cut, self.is_delta = source.infos, source.cut, source.is_delta

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Raise."""
        raise NotReadError(name, start, stop)


class NotReadError(Exception):
    """A method read weights while its merge was only to be described."""


@dataclass(frozen=True, slots=True)
class Working:
    """The largest piece of a tensor, and the bytes that a worker holds while it computes it."""

    name: str
    elements: int
    bytes: int
    #: how many pieces the tensor has: several workers may be at it
    pieces: int


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes that are held while a range is read, and what stays when it has been read."""

    peak: float
    kept: float = 0


def working_memory(merged: WeightSource) -> Iterator[Working]:
    """Yield for every tensor what a worker holds at most while it computes it."""
    for name, info in merged.infos.items():
        longest = max(stop - start for start, stop in merged.ranges(name))
        held = _held(merged, info, longest)
        pieces = max(1, -(-info.numel // max(longest, 1)))
        yield Working(name, longest, int(held.peak), pieces)


def _held(source: WeightSource | Applied[Any], info: TensorInfo, elements: int) -> _Held:
    """Return what reading so many elements of a tensor takes."""
    if isinstance(source, PackedSource):
        return _held_by_packed(source, info, elements)
    if isinstance(source, TransformedExpert):
        source = source.rows
    if isinstance(source, Applied) and is_merged(info):
        return _held_by_kernel(source, info, elements)
    if isinstance(source, Applied):
        source = source.operands.reference
    inner = [each for each in source.sources if info.name in each.infos] or source.sources
    held = _held(inner[0], info, elements) if inner else _Held(elements * info.dtype.itemsize)
    if isinstance(source, UnpackedSource):
        return _Held(held.peak + source.kept_bytes, held.kept + source.kept_bytes)
    return held


def _held_by_packed(packed: PackedSource, info: TensorInfo, elements: int) -> _Held:
    """Matrices are computed one after the other, and put into the range where they lie apart."""
    largest = max(packed.layout.infos_of(info), key=lambda own: own.numel)
    ranges = packed.matrices.ranges(largest.name)
    held = _held(packed.matrices, largest, max(stop - start for start, stop in ranges))
    shares_range = elements > largest.numel
    gathered = elements * packed.infos[info.name].dtype.itemsize if shares_range else 0
    return _Held(held.peak + gathered, held.kept)


def _held_by_kernel(applied: Applied[Any], info: TensorInfo, elements: int) -> _Held:
    """Operands are read one after the other, and then the kernel computes."""
    computed = applied.infos.get(info.name, info)
    width, experts = computed.dtype.itemsize, len(applied.operands.experts)
    peak = kept = 0.0
    for read, operand in enumerate(_distinct(applied.operands.sources)):
        own = _held(operand, info, elements)
        peak = max(peak, kept + own.peak + read * width * elements)
        kept += own.kept
    shape = piece_shape(info, elements, applied.cut)
    computing = width * applied.kernel.working_memory(shape, experts)
    stays = width * experts * elements if isinstance(applied, TransformedRows) else 0
    return _Held(max(peak, kept + computing), kept + stays)


def _distinct(sources: Iterable[WeightSource]) -> list[WeightSource | Applied[Any]]:
    """Return operands, and once what several of them share."""
    shared = [
        source.rows if isinstance(source, TransformedExpert) else source for source in sources
    ]
    return [*{id(each): each for each in shared}.values()]


def survey_memory(source: WeightSource | Applied[Any]) -> int:
    """Return the bytes that the surveys of a merge and of its operands keep."""
    own, inner = 0, source.sources if isinstance(source, WeightSource) else ()
    if isinstance(source, Applied):
        at_once = {Scope.NONE: 0, Scope.MODEL: 1, Scope.TENSOR: AHEAD}[source.kernel.scope]
        own, inner = at_once * len(source.operands.experts) * _SURVEY, source.operands.sources
    return own + sum(map(survey_memory, _distinct(inner)))
