"""The memory that one worker needs to compute a tensor of a lazy merge, from headers alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.weights import MergedSource, WeightSource
from fusion_core.weights.merging.compiled import has_kernel
from fusion_core.weights.merging.execution import AHEAD
from fusion_core.weights.merging.kernels import AppliedKernel, Scope
from fusion_core.weights.merging.piece import is_merged, piece_shape
from fusion_core.weights.merging.transforms import (
    TransformedExpert,
    TransformedRows,
    applied_kernels,
)
from fusion_core.weights.packing import PackedSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from fusion_core.weights import LowRank, TensorInfo

#: The samples and tallies of a survey, per expert.
_SURVEY = 3 * 2**20
#: The share of what torch's operations hold that a merge holds if a kernel serves it: they run only
#: until it is loaded. Measured: 0.4 to 1.1 (`benchmarks/memory.py`).
_COMPILED = 0.7


class HeadersOnly(WeightSource):
    """A model with headers and no values. Reading it raises `NotImplementedError`."""

    def __init__(self, source: WeightSource) -> None:
        self.infos, self.cut, self.is_delta = source.infos, source.cut, source.is_delta
        self._kept_bytes, self._low_rank = source.kept_bytes, source.low_rank

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError(f"{name} was read, and only the lazy merge was wanted")

    def low_rank(self, name: str) -> LowRank | None:
        return self._low_rank(name)

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes


@dataclass(frozen=True, slots=True)
class Working:
    """The largest piece of a tensor, and the bytes that a worker holds while it computes it."""

    name: str
    elements: int
    bytes: int
    #: the number of pieces, which several workers may compute at a time
    pieces: int


@dataclass(frozen=True, slots=True)
class _Held:
    """The bytes held while a range is read, and those that stay afterwards."""

    peak: float
    remaining: float = 0


def working_memory(merged: WeightSource) -> Iterator[Working]:
    """Yield the memory that a worker needs for each tensor."""
    for name, info in merged.infos.items():
        longest = max(stop - start for start, stop in merged.ranges(name))
        held = _held(merged, info, longest)
        pieces = max(1, -(-info.numel // max(longest, 1)))
        yield Working(name, longest, int(held.peak), pieces)


def _held(source: WeightSource | AppliedKernel[Any], info: TensorInfo, elements: int) -> _Held:
    """Return the memory for reading so many elements of a tensor."""
    if isinstance(source, PackedSource):
        return _held_by_packed(source, info, elements)
    if isinstance(source, TransformedExpert):
        source = source.rows
    if isinstance(source, AppliedKernel):
        # of a stack, a model may have no tensor of this name
        if source.computes(info.name) if info.name in source.infos else is_merged(info):
            return _held_by_kernel(source, info, elements)
        source = source.operands.reference
    inner = [child for child in source.sources if info.name in child.infos] or source.sources
    held = _held(inner[0], info, elements) if inner else _Held(elements * info.dtype.itemsize)
    return _Held(held.peak + source.kept_bytes, held.remaining + source.kept_bytes)


def _held_by_packed(packed: PackedSource, info: TensorInfo, elements: int) -> _Held:
    """Return the memory for matrices, computed in turn, and for the range that gathers them."""
    largest = max(packed.layout.describe_matrices(info), key=lambda matrix: matrix.numel)
    ranges = packed.matrices.ranges(largest.name)
    held = _held(packed.matrices, largest, max(stop - start for start, stop in ranges))
    shares_range = elements > largest.numel
    gathered = elements * packed.infos[info.name].dtype.itemsize if shares_range else 0
    return _Held(held.peak + gathered, held.remaining)


def _held_by_kernel(applied: AppliedKernel[Any], info: TensorInfo, elements: int) -> _Held:
    """Return the memory for a kernel, which computes after its operands are read in turn."""
    computed = applied.infos.get(info.name, info)
    width, experts = computed.dtype.itemsize, len(applied.operands.experts)
    shape = piece_shape(info, elements, applied.cut)
    computing = width * applied.kernel.working_memory(shape, experts)
    if isinstance(applied, MergedSource) and has_kernel(applied.function, applied.operands):
        computing *= _COMPILED
    peak = remaining = 0.0
    for already_read, operand in enumerate(_distinct(applied.operands.sources)):
        held = _held(operand, info, elements)
        # a kernel that reads one expert after the other never holds all of them
        operands_held = min(already_read * width * elements, computing)
        peak = max(peak, remaining + held.peak + operands_held)
        remaining += held.remaining
    rows = width * experts * elements if isinstance(applied, TransformedRows) else 0
    return _Held(max(peak, remaining + computing), remaining + rows)


def _distinct(sources: Iterable[WeightSource]) -> list[WeightSource | AppliedKernel[Any]]:
    """Return the operands, and the transform that several of them share once."""
    shared = [
        source.rows if isinstance(source, TransformedExpert) else source for source in sources
    ]
    return [*{id(source): source for source in shared}.values()]


def survey_memory(source: WeightSource) -> int:
    """Return the bytes that the surveys of a merge and of its operands keep."""
    at_once = {Scope.NONE: 0, Scope.MODEL: 1, Scope.TENSOR: AHEAD}
    return sum(
        at_once[applied.kernel.scope] * len(applied.operands.experts) * _SURVEY
        for applied in applied_kernels(source)
    )


def uses_kernels(source: WeightSource) -> bool:
    """Tell whether compiled functions may compute a merge, an operand of it, or its surveys.

    A survey does not declare its functions. They are in modules that its method has imported.
    """
    return any(
        has_kernel(applied.function, applied.operands)
        or (applied.kernel.scope is not Scope.NONE and _are_imported(applied.operands.kernels))
        for applied in applied_kernels(source)
    )


def _are_imported(functions: Iterable[str]) -> bool:
    return any(function.partition(":")[0] in sys.modules for function in functions)
