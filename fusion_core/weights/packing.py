"""Models seen matrix by matrix, and matrices put back into tensors.

A method is written for one matrix. Where a tensor holds several, `Layout.unpacked` gives it each of
them as a tensor of its own, and `Layout.packed` puts the results into the tensor's places. So a
packed mixture is merged as the same experts stored one by one, whatever the method.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.ranges import joined_ranges, read_any
from fusion_core.weights.source import Cut, TensorInfo, WeightSource, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor

    from fusion_core.weights.matrices import Slot

    Values = Mapping[str, torch.Tensor]

#: How many ranges a source keeps the values of: workers are at the same one or at the next.
_KEPT = 2


@dataclass(frozen=True)
class Layout:
    """Where matrices lie, by tensor: of the tensors that are not merged as they are stored."""

    slots: Mapping[str, tuple[Slot, ...]]
    #: the shapes of these tensors
    shapes: Mapping[str, tuple[int, ...]]

    def infos_of(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        """Describe what a method sees of a tensor: its matrices, or the tensor itself."""
        slots = self.slots.get(info.name)
        if slots is None:
            return (info,)
        return tuple(TensorInfo(slot.name, slot.shape, info.dtype) for slot in slots)

    def unpacked(self, source: WeightSource) -> WeightSource:
        """Return a model whose tensors are the matrices, by their names."""
        slots = self.slots_in(source)
        if isinstance(source, PackedSource) and source.layout.slots_in(source) == slots:
            return source.matrices
        return UnpackedSource(source, self) if slots else source

    def packed(self, source: WeightSource) -> WeightSource:
        """Return a model whose tensors hold the matrices of another, which `unpacked` made."""
        return PackedSource(source, self) if self.slots else source

    def slots_in(self, source: WeightSource) -> dict[str, tuple[Slot, ...]]:
        """Return where matrices lie in the tensors that a source has."""
        return {name: slots for name, slots in self.slots.items() if name in source.infos}


class UnpackedSource(WeightSource):
    """The matrices of another source's tensors, each as a tensor of its own."""

    def __init__(self, source: WeightSource, layout: Layout) -> None:
        self._source = source
        self._slots = layout.slots_in(source)
        self._places = {
            slot.name: (tensor, slot) for tensor, slots in self._slots.items() for slot in slots
        }
        self._latest = _Latest()
        self.cut, self.is_delta = source.cut, source.is_delta
        self.infos = {
            matrix.name: matrix
            for info in source.infos.values()
            for matrix in layout.infos_of(info)
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a matrix; one whose elements lie apart is gathered whole, and kept."""
        if name not in self._places:
            return self._source.read(name, start, stop)
        tensor, slot = self._places[name]
        if slot.is_contiguous:
            return self._range(tensor, slot.start + start, slot.start + stop)
        key = (tensor, slot.start, slot.stop)
        return self._latest.get(key, lambda: self._gathered(*key))[name][start:stop]

    def _gathered(self, tensor: str, start: int, stop: int) -> Values:
        """Return all matrices that lie in a range of a tensor."""
        values = read_any(self._source, tensor, start, stop)
        mates = [slot for slot in self._slots[tensor] if slot.start == start]
        return {mate.name: mate.view(values).reshape(-1) for mate in mates}

    def _range(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor; what a source computes beyond it is kept for the next one."""
        if self._source.cut is Cut.ELEMENT:
            return self._source.read(tensor, start, stop)

        def read(first: int, last: int) -> torch.Tensor:
            key = (tensor, first, last)
            return self._latest.get(key, lambda: {tensor: self._source.read(*key)})[tensor]

        return joined_ranges(self._source.ranges(tensor), (start, stop), read)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source whose tensors hold the matrices."""
        return (self._source,)

    @property
    def kept_bytes(self) -> int:
        """The bytes that are kept at most of what was gathered."""
        infos = self._source.infos
        return _KEPT * max(
            (
                (slot.stop - slot.start) * infos[tensor].dtype.itemsize
                for tensor, slot in self._places.values()
                if not slot.is_contiguous
            ),
            default=0,
        )

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the tensor that holds a matrix."""
        tensor = self._places[name][0] if name in self._places else name
        self._source.prepare(executor, tensor)

    def describe(self) -> str:
        """Name the model."""
        return self._source.describe()


class PackedSource(WeightSource):
    """Tensors that hold the matrices of another source, which has each as a tensor of its own."""

    def __init__(self, matrices: WeightSource, layout: Layout) -> None:
        #: the model matrix by matrix
        self.matrices = matrices
        self.layout = layout
        self.cut, self.is_delta = matrices.cut, matrices.is_delta
        self.infos = {info.name: info for info in self._packed_infos()}
        self._groups = {
            name: _Groups.of(slots) for name, slots in layout.slots.items() if name in self.infos
        }

    def _packed_infos(self) -> Iterator[TensorInfo]:
        owners = {slot.name: name for name, slots in self.layout.slots.items() for slot in slots}
        for info in self.matrices.infos.values():
            tensor = owners.get(info.name)
            shape = info.shape if tensor is None else self.layout.shapes[tensor]
            yield TensorInfo(tensor or info.name, shape, info.dtype)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read any range; of those that `ranges` yields, nothing is computed in vain."""
        if name not in self._groups:
            return self.matrices.read(name, start, stop)

        def read(first: int, last: int) -> torch.Tensor:
            (group,) = self._groups[name].within(first, first + 1)
            if (slot := _alone(group)) is not None:
                return self.matrices.read(slot.name, first - slot.start, last - slot.start)
            return self._interleaved(name, group)

        touched = self._groups[name].within(start, stop)
        ranges = (span for group in touched for span in self._ranges_of(group))
        return joined_ranges(ranges, (start, stop), read)

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a matrix that lies by itself, and those that several share."""
        if name not in self._groups:
            yield from self.matrices.ranges(name)
            return
        for group in self._groups[name].groups:
            yield from self._ranges_of(group)

    def _ranges_of(self, group: tuple[Slot, ...]) -> Iterator[tuple[int, int]]:
        if (slot := _alone(group)) is None:
            yield group[0].start, group[0].stop
            return
        for first, last in self.matrices.ranges(slot.name):
            yield slot.start + first, slot.start + last

    def _interleaved(self, name: str, slots: tuple[Slot, ...]) -> torch.Tensor:
        """Return the range that several matrices share, or one whose elements lie apart."""
        values = torch.empty(slots[0].stop - slots[0].start, dtype=self.infos[name].dtype)
        for slot in slots:
            view = slot.view(values)
            view.copy_(assemble(self.matrices, slot.name).view(view.shape))
        return values

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The matrices' source."""
        return (self.matrices,)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare every matrix of a tensor."""
        if name not in self._groups:
            self.matrices.prepare(executor, name)
            return
        for slot in self.layout.slots[name]:
            self.matrices.prepare(executor, slot.name)

    def describe(self) -> str:
        """Name the model."""
        return self.matrices.describe()


@dataclass(frozen=True)
class _Groups:
    """A tensor's matrices, those that share a range together, and where these ranges begin."""

    groups: tuple[tuple[Slot, ...], ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, slots: tuple[Slot, ...]) -> _Groups:
        groups = tuple(tuple(group) for _, group in groupby(slots, key=lambda slot: slot.start))
        return cls(groups, tuple(group[0].start for group in groups))

    def within(self, start: int, stop: int) -> tuple[tuple[Slot, ...], ...]:
        """Return the matrices of the ranges that a span of elements touches."""
        return self.groups[bisect_right(self.starts, start) - 1 : bisect_left(self.starts, stop)]


def _alone(group: tuple[Slot, ...]) -> Slot | None:
    """Return the only matrix of a range where that is the matrix, row by row."""
    return group[0] if len(group) == 1 and group[0].is_contiguous else None


class _Latest:
    """The values of the ranges that were asked for last, by whichever thread; never pickled."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int], Values] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int, int], make: Callable[[], Values]) -> Values:
        """Return a range's values, made now if they are not kept."""
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= _KEPT:
                    self._kept.popitem(last=False)
                self._kept[key] = make()
            return self._kept[key]

    def __reduce__(self) -> tuple[type[_Latest], tuple[()]]:
        return _Latest, ()
