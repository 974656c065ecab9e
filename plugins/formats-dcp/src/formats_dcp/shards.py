"""Tensors that are the union of several stored boxes, read by range.

The boxes are what ranks saved: rows (FSDP), columns (tensor parallelism), blocks of both, or slices
along any dimension. They are ordinary tensors of a `FileSource`. A range of the whole is read from
the boxes that it touches, each in contiguous parts, so memory stays flat.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorInfo
from fusion_core.errors import CheckpointError
from fusion_core.weights import FileSource, Origin, StoredTensor, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: A box of indices: a start and a stop for each dimension.
Box = tuple[tuple[int, int], ...]
#: The most cells of the grid of all cuts, per box, in which boxes are looked for.
_CELLS_PER_BOX, _FREE_CELLS = 16, 4096


@dataclass(frozen=True, slots=True)
class StoredBox:
    """A box of a tensor, and where its values are stored, contiguous in row-major order."""

    tensor: str
    dtype: torch.dtype
    box: Box
    file: str
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The size in each dimension."""
        return tuple(stop - start for start, stop in self.box)

    @property
    def label(self) -> str:
        """The name of the box in errors: the tensor with the ranges of its indices."""
        return f"{self.tensor}[{', '.join(f'{start}:{stop}' for start, stop in self.box)}]"


class ShardFiles(FileSource):
    """The files of a checkpoint, whose tensors are boxes. A subclass implements `find_boxes`."""

    boxes: dict[str, list[StoredBox]]
    #: the shape of every tensor, which `find_boxes` sets
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def find_boxes(self) -> Iterable[StoredBox]:
        """Yield every box of the model that is not empty, or the one box of an empty tensor."""

    def find_tensors(self) -> Iterator[StoredTensor]:
        """Yield each box as a tensor."""
        self.boxes = {}
        for box in self.find_boxes():
            self.boxes.setdefault(box.tensor, []).append(box)
            yield StoredTensor(box.file, TensorInfo(box.label, box.shape, box.dtype), box.offset)


class ShardedSource(WeightSource):
    """The tensors of a checkpoint in boxes. Raises `CheckpointError` if boxes miss or overlap."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        for name, boxes in files.boxes.items():
            dtypes = {str(box.dtype) for box in boxes}
            if len(dtypes) > 1:
                raise CheckpointError(
                    f"{files.describe()}: the shards of {name!r} differ in dtype: "
                    f"{', '.join(sorted(dtypes))}"
                )
            check_tiling(name, files.shapes[name], [box.box for box in boxes], files.describe())
        names = dict.fromkeys(label.rpartition("[")[0] for label in files.infos)
        self.infos = {
            name: TensorInfo(name, files.shapes[name], files.boxes[name][0].dtype) for name in names
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range from all boxes that it touches."""
        info, boxes = self.infos[name], self._files.boxes[name]
        if len(boxes) == 1:
            return self._files.read(boxes[0].label, start, stop)
        values = torch.empty(stop - start, dtype=info.dtype)
        done = 0
        for part in split_range(info.shape, start, stop):
            shape = tuple(last - first for first, last in part)
            count = math.prod(shape)
            target = values[done : done + count].view(shape)
            for box in boxes:
                self._copy(box, part, target)
            done += count
        return values

    def _copy(self, stored: StoredBox, part: Box, target: torch.Tensor) -> None:
        """Copy what a part and a box have in common, which is contiguous in the box."""
        common = intersect(part, stored.box)
        if common is None:
            return
        shape = tuple(last - first for first, last in common)
        begin = 0
        for (first, _), (corner, _), size in zip(common, stored.box, stored.shape, strict=True):
            begin = begin * size + first - corner
        values = self._files.read(stored.label, begin, begin + math.prod(shape)).view(shape)
        for dimension, ((first, _), (corner, _)) in enumerate(zip(common, part, strict=True)):
            target = target.narrow(dimension, first - corner, shape[dimension])
        target.copy_(values)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The files."""
        return (self._files,)

    @property
    def origin(self) -> Origin:
        """The files."""
        return self._files.origin


def split_range(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Cut a range of elements into boxes, in order; each is a range along one dimension.

    Dimensions before that one have a single index, those after it are whole. So a box and any other
    box have contiguous elements of the other one in common.
    """
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:  # inside one index
        yield from _within(shape, start // inner, start % inner, stop - start // inner * inner)
        return
    if start % inner:
        yield from _within(shape, first - 1, start % inner, inner)
    if first < last:
        yield ((first, last), *((0, size) for size in shape[1:]))
    if stop % inner:
        yield from _within(shape, last, 0, stop % inner)


def _within(shape: Sequence[int], index: int, start: int, stop: int) -> Iterator[Box]:
    for box in split_range(shape[1:], start, stop):
        yield ((index, index + 1), *box)


def intersect(one: Box, other: Box) -> Box | None:
    """Return the box that two boxes have in common, or None."""
    common = []
    for (start, stop), (first, last) in zip(one, other, strict=True):
        begin, end = max(start, first), min(stop, last)
        if begin >= end:
            return None
        common.append((begin, end))
    return tuple(common)


def check_tiling(name: str, shape: Sequence[int], boxes: Sequence[Box], label: str) -> None:
    """Raise `CheckpointError` unless boxes cover a tensor, each element once."""
    twice = [box for box, count in Counter(boxes).items() if count > 1]
    problem = None
    if twice:
        problem = f"{_spell(twice[0])} is stored twice"
    elif any(len(box) != len(shape) for box in boxes) or any(
        not start <= stop <= size
        for box in boxes
        for (start, stop), size in zip(box, shape, strict=True)
    ):
        problem = f"a shard lies outside of its shape {list(shape)}"
    elif math.prod(shape):
        problem = _find_gap(shape, boxes)
    if problem is not None:
        raise CheckpointError(
            f"{label}: tensor {name!r}: {problem}",
            hint="Copy the checkpoint again, with the files of all ranks, or take another step.",
        )


def _find_gap(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Return what is wrong with boxes in a grid of all their cuts; None if they tile the shape."""
    cuts = [
        sorted({0, size, *(edge for box in boxes for edge in box[dimension])})
        for dimension, size in enumerate(shape)
    ]
    limit = _CELLS_PER_BOX * len(boxes) + _FREE_CELLS
    if math.prod(len(edges) - 1 for edges in cuts) > limit:
        return f"its {len(boxes)} shards form no grid, which is not supported"
    covered: set[Box] = set()
    for box in boxes:
        spans = (
            pairwise(edges[bisect_left(edges, start) : bisect_left(edges, stop) + 1])
            for edges, (start, stop) in zip(cuts, box, strict=True)
        )
        for cell in product(*spans):
            if cell in covered:
                return f"{_spell(cell)} is stored twice"
            covered.add(cell)
    for cell in product(*(pairwise(edges) for edges in cuts)):
        if cell not in covered:
            return f"{_spell(cell)} is missing"
    return None


def _spell(box: Box) -> str:
    return f"the shard [{', '.join(f'{start}:{stop}' for start, stop in box)}]"
