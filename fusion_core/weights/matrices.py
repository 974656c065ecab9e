"""The matrices that a tensor holds: one, a batch of them, or several side by side.

A tensor's elements, in stored order, run along axes. `Matrices` names these axes, and thereby where
every matrix begins and ends. Matrices cannot overlap, and together they cover the tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from fusion_core.weights.source import TensorInfo

INDEX, PART = "{index}", "{part}"


@dataclass(frozen=True, init=False)
class Axis:
    """An axis of a tensor, with one size or with named parts: `Rows(64)`, `Rows(q=32, k=16)`."""

    #: names and sizes; an axis without parts has one part with an empty name
    parts: tuple[tuple[str, int], ...]

    def __init__(self, size: int | None = None, /, **parts: int) -> None:
        if (size is None) is not bool(parts):
            raise TypeError(f"{type(self).__name__} takes a size or the sizes of its parts")
        named = tuple(parts.items()) if size is None else (("", size),)
        object.__setattr__(self, "parts", named)

    @property
    def size(self) -> int:
        """The number of indices along the axis."""
        return sum(size for _, size in self.parts)

    @property
    def has_parts(self) -> bool:
        """Whether the axis has named parts."""
        return self.parts[0][0] != ""


class Stacked(Axis):
    """The axis that counts the matrices of a batch: the first axis, without parts."""


class Rows(Axis):
    """An axis along the rows of a matrix: the outputs of a linear layer."""


class Columns(Axis):
    """An axis along the columns of a matrix: the inputs of a linear layer."""


@dataclass(frozen=True)
class Matrices:
    """The matrices that a tensor holds, as axes in the order in which its elements are stored.

        Matrices()  # as it is stored: a matrix if it has two dimensions
        Matrices((Stacked(8), Rows(64), Columns(32)))  # a batch: 8 matrices of 64 x 32
        Matrices((Rows(q=64, k=16, v=16), Columns(64)))  # three matrices, one below the other
        Matrices((Stacked(8), Columns(32), Rows(64), Rows(gate=1, up=1)))  # transposed, interleaved

    Several axes of rows count as one, the first being the slowest; columns likewise. Without rows
    or without columns there are vectors. The sizes of all axes multiply to the number of elements.

    A matrix is merged as if it were stored separately under `name`, where `{index}` stands for its
    number in the batch and `{part}` for its part. By default both are appended to the tensor's
    name. The name seeds random numbers and appears in errors.
    """

    axes: tuple[Axis, ...] = ()
    name: str = ""

    @classmethod
    def none(cls, shape: Sequence[int]) -> Self:
        """Declare that a tensor holds no matrix: its entries are merged like those of a vector."""
        return cls((Rows(math.prod(shape)),))

    @classmethod
    def convolution(cls, shape: Sequence[int]) -> Self:
        """Declare that a tensor (out, in, k, ...) holds the matrix (out, in * k * ...)."""
        return cls((Rows(shape[0]), Columns(math.prod(shape[1:]))))

    def slots(self, info: TensorInfo) -> tuple[Slot, ...]:
        """Return the slots of a tensor's matrices; none if it is merged as it is stored.

        Raises `ValueError` if the axes do not fit the tensor.
        """
        return find_slots(info, self)


@dataclass(frozen=True, slots=True)
class Slot:
    """One matrix in a tensor: a range of elements, and how to view the matrix in them."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    #: the sizes of the range's axes
    sizes: tuple[int, ...]
    #: the axis with parts, and where on it the matrix's part begins and how long it is
    part: tuple[int, int, int]
    #: the axes of rows, then those of columns
    order: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the range is the matrix, row by row."""
        return not self.is_transposed and self.stop - self.start == self.numel

    @property
    def is_transposed(self) -> bool:
        """Whether the tensor stores the matrix transposed."""
        return self.order != tuple(sorted(self.order))

    @property
    def numel(self) -> int:
        """The number of elements of the matrix."""
        return math.prod(self.shape)

    def view(self, values: Tensor) -> Tensor:
        """Return a view of the matrix in the range's values."""
        return values.view(self.sizes).narrow(*self.part).permute(self.order)


def find_slots(info: TensorInfo, declared: object) -> tuple[Slot, ...]:
    """Return the slots of a tensor's matrices; none if it is merged as it is stored.

    Raises `ValueError` for a declaration that does not fit the tensor.
    """
    if not isinstance(declared, Matrices):
        raise ValueError(f"expected Matrices, got a {type(declared).__name__}")  # noqa: TRY004
    if not declared.axes:
        return ()
    _check(info, declared)
    slots = tuple(_make_slots(info, declared))
    is_as_stored = [(slot.name, slot.shape) for slot in slots] == [(info.name, info.shape)]
    return () if is_as_stored and slots[0].is_contiguous else slots


def _check(info: TensorInfo, declared: Matrices) -> None:
    axes = declared.axes
    for axis in axes:
        if type(axis) not in {Stacked, Rows, Columns}:
            raise ValueError(f"expected Stacked, Rows and Columns, got {axis!r}")
        if any(type(size) is not int or size < 1 for _, size in axis.parts):
            raise ValueError(f"the sizes of {axis!r} are not whole numbers above 0")
    matrix_axes = axes[1:] if isinstance(axes[0], Stacked) else axes
    if not matrix_axes or any(isinstance(axis, Stacked) for axis in matrix_axes):
        raise ValueError("Stacked is the first axis or none, and rows or columns follow it")
    if sum(axis.has_parts for axis in matrix_axes) < sum(axis.has_parts for axis in axes):
        raise ValueError("Stacked cannot have parts: give them to rows or columns")
    if sum(axis.has_parts for axis in matrix_axes) > 1:
        raise ValueError("several axes have parts: expected at most one")
    if (count := math.prod(axis.size for axis in axes)) != info.numel:
        sizes = " * ".join(str(axis.size) for axis in axes)
        raise ValueError(f"the axes have {sizes} = {count:,} elements, the tensor {info.numel:,}")


def _make_slots(info: TensorInfo, declared: Matrices) -> Iterator[Slot]:
    count, axes = 1, declared.axes
    template = declared.name or info.name
    if isinstance(axes[0], Stacked):
        count, axes = axes[0].size, axes[1:]
        template = template if INDEX in template else f"{template}.{INDEX}"
    cut = next((number for number, axis in enumerate(axes) if axis.has_parts), 0)
    if axes[cut].has_parts and PART not in template:
        template = f"{template}.{PART}"
    ends = [0, *accumulate(size for _, size in axes[cut].parts)]
    for index in range(count):
        for (part, _), (first, last) in zip(axes[cut].parts, pairwise(ends), strict=True):
            name = template.replace(INDEX, str(index)).replace(PART, part)
            yield _make_slot(name, axes, (cut, first, last - first), index)


def _make_slot(name: str, axes: Sequence[Axis], part: tuple[int, int, int], index: int) -> Slot:
    sizes = tuple(axis.size for axis in axes)
    cut, first, length = part
    part_sizes = (*sizes[:cut], length, *sizes[cut + 1 :])
    rows = [number for number, axis in enumerate(axes) if isinstance(axis, Rows)]
    columns = [number for number in range(len(axes)) if number not in rows]
    shape = tuple(
        math.prod(part_sizes[number] for number in side) for side in (rows, columns) if side
    )
    start, stop = (math.prod(sizes) * number for number in (index, index + 1))
    if cut == 0:  # the part is contiguous
        start += first * math.prod(sizes[1:])
        stop = start + math.prod(part_sizes)
        sizes, part = part_sizes, (0, 0, length)
    return Slot(name, shape, start, stop, sizes, part, (*rows, *columns))
