"""One piece of a merge: the same range of one tensor in every operand, as a kernel sees it.

Values come in the dtype to compute in, checked for NaN and infinity where the policy asks for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import WeightsError
from fusion_core.weights.merging._lazy import lazy
from fusion_core.weights.merging.counters import counter_uniform
from fusion_core.weights.source import Cut, base_or_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.weights.source import TensorInfo, WeightSource


_CPU = torch.device("cpu")
#: The extra that calibrations are given.
MERGED = "merged"


class Bound(Enum):
    """Whose task vectors bound how far a merged entry may be away from the base."""

    NONE = "none"
    #: those of the same tensor
    TENSOR = "tensor"
    #: those of all tensors: a method that fits data may move a tensor that no expert changed
    MODEL = "model"


class OutOfRangeError(WeightsError):
    """A task vector is not representable in the dtype to compute in."""


@dataclass(frozen=True)
class Operands:
    """What is merged: aligned sources, each expert's factor, and the key of random numbers."""

    base: WeightSource | None
    experts: Mapping[str, WeightSource]
    weights: tuple[float, ...] = ()
    #: what random numbers derive from, besides expert, tensor and element
    key: str = ""
    #: the name of the method, for errors; none: that of the kernel's class
    method: str = ""
    #: refuse NaN and infinity, in and out
    finite: bool = True
    #: whose task vectors bound how far merged values may be away
    bound: Bound = Bound.NONE
    #: where matrices are merged; what is cut between elements stays on the CPU
    device: torch.device = _CPU
    #: compute in fp64 whatever the operands are
    wide: bool = False
    #: what a kernel needs beside the models, by name, with the models' tensors and shapes
    extras: Mapping[str, WeightSource] = field(default_factory=dict)

    @property
    def reference(self) -> WeightSource:
        """The source that gives names, order, shapes, and tensors that are not merged."""
        return base_or_first(self.base, self.experts)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The base, if there is one, the experts, and the extras."""
        return (*self._models, *self.extras.values())

    @property
    def _models(self) -> tuple[WeightSource, ...]:
        return (*([] if self.base is None else [self.base]), *self.experts.values())

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype to compute a tensor in: fp64 if a model is, else fp32."""
        wide = self.wide or any(model.infos[name].dtype is torch.float64 for model in self._models)
        return torch.float64 if wide else torch.float32


class Piece:
    """The same range of one tensor in every operand.

    `base`: its values; `experts` and `task_vectors` (experts - base) have one more leading
    dimension, the expert. Where the pool has no base, `base` and `task_vectors` raise
    `WeightsError`. The range's shape is (elements,) at `Cut.ELEMENT`, (rows, ...) at `Cut.ROW` and
    the tensor's own at `Cut.TENSOR`. Values are fp32, or fp64 where an operand is fp64; kernels
    must not write into them.
    """

    def __init__(
        self,
        operands: Operands,
        info: TensorInfo,
        span: tuple[int, int],
        cut: Cut,
        state: Any = None,  # noqa: ANN401 - the kernel's own
    ) -> None:
        self.info = info
        self.start, self.stop = span
        #: what the kernel's survey returned
        self.state = state
        self._operands = operands
        #: of `base`, of one row of `experts`, and of what is merged
        self.shape = piece_shape(info, self.stop - self.start, cut)
        # What is computed element by element takes longer to copy to a GPU than to compute.
        self._device = _CPU if cut is Cut.ELEMENT else operands.device

    @lazy
    def base(self) -> torch.Tensor:
        """Read the base's values; raises `WeightsError` if the pool has no base."""
        return self._placed(self._base)

    @lazy
    def _base(self) -> torch.Tensor:
        if self._operands.base is None:
            raise WeightsError(
                "this algorithm works on task vectors, and the pool has no base",
                hint="Give the model pool the model that the experts were fine-tuned from.",
            )
        return self._checked(self._operands.base)

    @lazy
    def merged(self) -> torch.Tensor:
        """Read what is calibrated: the values of the merge, of the shape of `base`."""
        return self.extra(MERGED)  # noqa: S610 - not Django's

    def extra(self, name: str) -> torch.Tensor:
        """Read what the kernel was given beside the models, of the shape of `base`."""
        return self._placed(self._checked(self._operands.extras[name]))

    def _checked(self, source: WeightSource) -> torch.Tensor:
        values = self._empty().copy_(self._read(source))
        if self._operands.finite:
            check_finite(values, self.info.name, source.describe())
        return values

    @lazy
    def experts(self) -> torch.Tensor:
        """Read the experts' values, stacked in pool order."""
        return self._rows(relative=False)

    @lazy
    def task_vectors(self) -> torch.Tensor:
        """Read the experts' differences from the base, stacked in pool order."""
        return self._rows(relative=True)

    @property
    def origin(self) -> torch.Tensor:
        """The base's values or, where the pool has no base, the first expert's."""
        return self.experts[0] if self._operands.base is None else self.base

    @property
    def differences(self) -> torch.Tensor:
        """The experts' differences from `origin`: the task vectors, where the pool has a base."""
        if self._operands.base is None:
            return self.experts - self.origin
        return self.task_vectors

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in pool order."""
        return tuple(self._operands.experts)

    @lazy
    def weights(self) -> torch.Tensor:
        """Return their factors, of shape (experts, 1, ...): they broadcast over `experts`."""
        factors = self._operands.weights or (1.0,) * len(self._operands.experts)
        column = (len(factors), *[1] * len(self.shape))
        dtype = self._operands.dtype(self.info.name)
        return torch.tensor(factors, dtype=dtype, device=self._device).reshape(column)

    def uniform(self, expert: int) -> torch.Tensor:
        """Uniform random numbers in [0, 1), one an element, of shape `base`.

        Each depends on the seed, the algorithm, the expert, the tensor and the element's index
        alone, so a random method gives the same bytes however the work is cut.
        """
        key = f"{self._operands.key}\0{self.names[expert]}\0{self.info.name}"
        return self._placed(counter_uniform(key, self.start, self.stop).reshape(self.shape))

    def _rows(self, *, relative: bool) -> torch.Tensor:
        """Stack the experts, or their task vectors: whichever a source has, the other follows."""
        rows = self._empty(len(self.names))
        for row, source in zip(rows, self._operands.experts.values(), strict=True):
            row.copy_(self._read(source))
            if source.is_delta != relative:
                row.add_(self._base, alpha=-1 if relative else 1)
            if self._operands.finite and not is_finite(row):  # of both operands, in one look
                self._blame(source, row.dtype)
        return self._placed(rows)

    def _blame(self, source: WeightSource, dtype: torch.dtype) -> None:
        """Raise `WeightsError` for values that are not finite, or whose difference is not."""
        check_finite(self._read(source), self.info.name, source.describe())
        raise OutOfRangeError(
            f"{source.describe()}: tensor {self.info.name!r} and the base's are too far apart for "
            f"a task vector in {dtype}",
            hint="Save the models in float64, or check that the expert belongs to this base.",
        )

    def _read(self, source: WeightSource) -> torch.Tensor:
        return source.read(self.info.name, self.start, self.stop).reshape(self.shape)

    def _empty(self, *leading: int) -> torch.Tensor:
        dtype = self._operands.dtype(self.info.name)
        pinned = self._device.type == "cuda"  # what is copied to a GPU while the CPU goes on
        return torch.empty((*leading, *self.shape), dtype=dtype, pin_memory=pinned)

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, non_blocking=True)


def per_expert(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Give one value an expert the dtype, device and dimensions that broadcast over their rows."""
    return values.to(rows).reshape(-1, *[1] * (rows.dim() - 1))


def in_order(rows: Iterator[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension in its order, so that rounding does not depend on cuts."""
    iterator = iter(rows)
    first, second = next(iterator), next(iterator, None)
    total = first.clone() if second is None else first + second
    for row in iterator:
        total += row
    return total


def is_merged(info: TensorInfo) -> bool:
    """Tell whether a tensor is merged; integers and booleans are copied."""
    return info.dtype.is_floating_point


def is_finite(values: torch.Tensor) -> bool:
    """Tell whether no value is NaN or infinite."""
    # A sum is finite only if all its terms are; it overflows rarely enough to look twice then. That
    # of bf16 is taken in fp32 anyway, and faster where it is not asked for.
    narrow = values.dtype is torch.bfloat16
    wide = values.dtype if narrow else torch.promote_types(values.dtype, torch.float32)
    return math.isfinite(values.sum(dtype=wide).item()) or bool(values.isfinite().all())


def check_finite(values: torch.Tensor, name: str, origin: str) -> None:
    """Raise `WeightsError` naming tensor and model if a value is NaN or infinite."""
    if is_finite(values):
        return
    count = int((~values.isfinite()).sum())
    raise WeightsError(
        f"{origin}: tensor {name!r} holds {count} values that are NaN or infinite",
        hint="Check the model, or set alignment.nan to 'allow' to let them through.",
    )


def piece_shape(info: TensorInfo, count: int, cut: Cut) -> tuple[int, ...]:
    """Return the shape that a range of so many elements of a tensor has in a piece."""
    if cut is Cut.TENSOR:
        return info.shape
    if cut is Cut.ROW and len(info.shape) > 1:
        return (count // math.prod(info.shape[1:]), *info.shape[1:]) if count else info.shape
    return (count,)
