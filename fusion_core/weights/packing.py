"""Models seen as separate matrices, and matrices put back into the tensors that hold them.

A method is written for one matrix. If a tensor holds several, `Layout.unpack` presents each as a
tensor of its own, and `Layout.pack` puts the results back. So a packed mixture of experts is
merged like the same experts stored one by one, by any method.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.ranges import join_ranges, read_range
from fusion_core.weights.source import Cut, LowRank, TensorInfo, WeightSource, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core.weights.matrices import Slot
    from fusion_core.weights.origin import Origin

    Values = Mapping[str, torch.Tensor]
    #: the matrices of a tensor that share one range of its elements
    SlotGroup = tuple[Slot, ...]

#: The number of ranges whose values a source keeps: workers are at one range or the next.
_KEPT_RANGES = 2


@dataclass(frozen=True)
class Layout:
    """The matrices of those tensors that are not merged as they are stored."""

    slots: Mapping[str, tuple[Slot, ...]]
    #: the shapes of these tensors
    shapes: Mapping[str, tuple[int, ...]]

    def describe_matrices(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        """Describe the matrices of a tensor, or the tensor itself if it is merged as stored."""
        slots = self.slots.get(info.name)
        if slots is None:
            return (info,)
        return tuple(TensorInfo(slot.name, slot.shape, info.dtype) for slot in slots)

    def unpack(self, source: WeightSource) -> WeightSource:
        """Return a model whose tensors are the matrices, by their names."""
        slots = self.slots_in(source)
        if isinstance(source, PackedSource) and source.layout.slots_in(source) == slots:
            return source.matrices
        return UnpackedSource(source, self) if slots else source

    def pack(self, source: WeightSource) -> WeightSource:
        """Return a model whose tensors hold the matrices of an unpacked one."""
        return PackedSource(source, self) if self.slots else source

    def slots_in(self, source: WeightSource) -> dict[str, tuple[Slot, ...]]:
        """Return the matrices of the tensors that a source has."""
        return {name: slots for name, slots in self.slots.items() if name in source.infos}


class UnpackedSource(WeightSource):
    """The matrices in another source's tensors, each as a tensor of its own."""

    def __init__(self, source: WeightSource, layout: Layout) -> None:
        self._source = source
        self._slots = layout.slots_in(source)
        self._by_matrix = {
            slot.name: (tensor, slot) for tensor, slots in self._slots.items() for slot in slots
        }
        self._cache = _RangeCache()
        self.cut, self.is_delta = source.cut, source.is_delta
        self.infos = {
            matrix.name: matrix
            for info in source.infos.values()
            for matrix in layout.describe_matrices(info)
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a matrix; a matrix with scattered elements is read whole and cached."""
        if name not in self._by_matrix:
            return self._source.read(name, start, stop)
        tensor, slot = self._by_matrix[name]
        if slot.is_contiguous:
            return self._read_range(tensor, slot.start + start, slot.start + stop)
        key = (tensor, slot.start, slot.stop)
        return self._cache.get(key, lambda: self._gather(*key))[name][start:stop]

    def _gather(self, tensor: str, start: int, stop: int) -> Values:
        """Return all matrices in a range of a tensor."""
        values = read_range(self._source, tensor, start, stop)
        slots = [slot for slot in self._slots[tensor] if slot.start == start]
        return {slot.name: slot.view(values).reshape(-1) for slot in slots}

    def _read_range(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor; cache the coarser ranges that a source computes for it."""
        if self._source.cut is Cut.ELEMENT:
            return self._source.read(tensor, start, stop)

        def read(first: int, last: int) -> torch.Tensor:
            key = (tensor, first, last)
            return self._cache.get(key, lambda: {tensor: self._source.read(*key)})[tensor]

        return join_ranges(self._source.ranges(tensor), (start, stop), read)

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a tensor that is merged as it is stored."""
        return None if name in self._by_matrix else self._source.low_rank(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source whose tensors hold the matrices."""
        return (self._source,)

    @property
    def kept_bytes(self) -> int:
        """The most bytes that the cache of scattered matrices takes."""
        infos = self._source.infos
        sizes = (
            (slot.stop - slot.start) * infos[tensor].dtype.itemsize
            for tensor, slot in self._by_matrix.values()
            if not slot.is_contiguous
        )
        return _KEPT_RANGES * max(sizes, default=0)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the tensor that holds a matrix."""
        tensor = self._by_matrix[name][0] if name in self._by_matrix else name
        self._source.prepare(executor, tensor)

    @property
    def origin(self) -> Origin | None:
        """The origin of the source whose tensors hold the matrices."""
        return self._source.origin


class PackedSource(WeightSource):
    """Tensors that hold the matrices of another source, where each is a tensor of its own."""

    def __init__(self, matrices: WeightSource, layout: Layout) -> None:
        self.matrices = matrices
        self.layout = layout
        self.cut, self.is_delta = matrices.cut, matrices.is_delta
        self.infos: dict[str, TensorInfo] = {}
        owners = {slot.name: name for name, slots in layout.slots.items() for slot in slots}
        for info in matrices.infos.values():
            name = owners.get(info.name, info.name)
            shape = layout.shapes[name] if info.name in owners else info.shape
            self.infos[name] = TensorInfo(name, shape, info.dtype)
        self._groups = {
            name: [tuple(group) for _, group in groupby(slots, key=attrgetter("start"))]
            for name, slots in layout.slots.items()
            if name in self.infos
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read any range; the ranges that `ranges` yields need no discarded computation."""
        if name not in self._groups:
            return self.matrices.read(name, start, stop)
        groups = self._groups[name]

        def read(first: int, last: int) -> torch.Tensor:
            (group,) = _overlapping(groups, first, first + 1)
            if (slot := _only_contiguous(group)) is not None:
                return self.matrices.read(slot.name, first - slot.start, last - slot.start)
            return self._interleave(name, group)

        ranges = chain.from_iterable(map(self._group_ranges, _overlapping(groups, start, stop)))
        return join_ranges(ranges, (start, stop), read)

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of contiguous matrices, and whole ranges that several matrices share."""
        if name not in self._groups:
            yield from self.matrices.ranges(name)
            return
        for group in self._groups[name]:
            yield from self._group_ranges(group)

    def _group_ranges(self, group: SlotGroup) -> Iterator[tuple[int, int]]:
        if (slot := _only_contiguous(group)) is None:
            yield group[0].start, group[0].stop
            return
        for first, last in self.matrices.ranges(slot.name):
            yield slot.start + first, slot.start + last

    def _interleave(self, name: str, group: SlotGroup) -> torch.Tensor:
        """Return a range that several matrices, or the scattered elements of one, fill."""
        values = torch.empty(group[0].stop - group[0].start, dtype=self.infos[name].dtype)
        for slot in group:
            view = slot.view(values)
            view.copy_(assemble(self.matrices, slot.name).view(view.shape))
        return values

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a tensor that is merged as it is stored."""
        return None if name in self._groups else self.matrices.low_rank(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The unpacked model."""
        return (self.matrices,)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare every matrix of a tensor."""
        if name not in self._groups:
            self.matrices.prepare(executor, name)
            return
        for slot in self.layout.slots[name]:
            self.matrices.prepare(executor, slot.name)

    @property
    def origin(self) -> Origin | None:
        """The origin of the unpacked model."""
        return self.matrices.origin


def _overlapping(groups: Sequence[SlotGroup], start: int, stop: int) -> Sequence[SlotGroup]:
    """Return the groups whose ranges overlap a span of elements."""
    first = bisect_right(groups, start, key=_start_of) - 1
    return groups[first : bisect_left(groups, stop, key=_start_of)]


def _start_of(group: SlotGroup) -> int:
    return group[0].start


def _only_contiguous(group: SlotGroup) -> Slot | None:
    """Return the single matrix of a range that is the range itself, row by row."""
    return group[0] if len(group) == 1 and group[0].is_contiguous else None


class _RangeCache:
    """The values of the ranges that any thread read last. Pickling drops them."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[str, int, int], Values] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, int], make: Callable[[], Values]) -> Values:
        with self._lock:
            if key not in self._values:
                while len(self._values) >= _KEPT_RANGES:
                    self._values.popitem(last=False)
                self._values[key] = make()
            return self._values[key]

    def __reduce__(self) -> tuple[type[_RangeCache], tuple[()]]:
        return _RangeCache, ()
