"""One piece of a merge: the same range of one tensor in every operand, as a kernel sees it.

Values have the dtype to compute in, and are checked for NaN and infinity where the policy asks for
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import WeightsError
from fusion_core.weights.merging._lazy import lazy
from fusion_core.weights.merging.counters import counter_uniform, seed_of
from fusion_core.weights.source import Cut, reference_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.weights.source import LowRank, TensorInfo, WeightSource

_CPU = torch.device("cpu")
#: The name of the extra operand that calibrations read: the merge so far.
MERGED = "merged"


class Bound(Enum):
    """Whose task vectors bound how far a merged entry may be from the base."""

    NONE = "none"
    #: those of the same tensor
    TENSOR = "tensor"
    #: those of all tensors: a method that fits data may move a tensor that no expert changed
    MODEL = "model"


class OutOfRangeError(WeightsError):
    """A task vector is not representable in the dtype to compute in."""


@dataclass(frozen=True)
class Operands:
    """The operands of a merge: aligned sources, one factor per expert, and how to compute."""

    base: WeightSource | None
    experts: Mapping[str, WeightSource]
    weights: tuple[float, ...] = ()
    #: what random numbers derive from, together with expert, tensor and element
    key: str = ""
    #: the name of the method, for errors; by default that of the kernel's class
    method: str = ""
    #: refuse NaN and infinity, in operands and in results
    finite: bool = True
    #: whose task vectors bound how far merged values may be from the base
    bound: Bound = Bound.NONE
    #: where matrices are merged; what is cut between elements stays on the CPU
    device: torch.device = _CPU
    #: compute in fp64 whatever the operands are
    wide: bool = False
    #: further operands of a kernel, by name, with the models' tensors and shapes
    extras: Mapping[str, WeightSource] = field(default_factory=dict)
    #: compiled functions of plugins: name and "module:class", by the function that each replaces
    kernels: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def reference(self) -> WeightSource:
        """The source that gives names, order, shapes, and tensors that are not merged."""
        return reference_model(self.base, self.experts)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The base, if there is one, the experts, and the extras."""
        return (*self.models, *self.extras.values())

    @property
    def models(self) -> tuple[WeightSource, ...]:
        """The base, if there is one, and the experts."""
        return (*([] if self.base is None else [self.base]), *self.experts.values())

    def low_rank(self, name: str) -> list[LowRank] | None:
        """Return each expert's difference from the base in a tensor as factors, None without."""
        parts = self.low_rank_parts(name)
        known = [part for part in parts if part is not None]
        return None if self.base is None or len(known) < len(parts) else known

    def low_rank_parts(self, name: str) -> list[LowRank | None]:
        """Return each expert's difference from the base as factors, or None for one without.

        A merge among the experts has none: its factors give the difference from its own base.
        """
        experts = self.experts.values()
        return [expert.low_rank(name) if expert.is_delta else None for expert in experts]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype to compute a tensor in: fp64 if a model has it in fp64, else fp32."""
        wide = self.wide or any(model.infos[name].dtype is torch.float64 for model in self.models)
        return torch.float64 if wide else torch.float32


class Piece:
    """The same range of one tensor in every operand.

    `base` holds the base's values. `experts` and `task_vectors` (experts - base) have one more
    leading dimension, the expert. Without a base, `base` and `task_vectors` raise `WeightsError`.
    The range's shape is (elements,) at `Cut.ELEMENT`, (rows, ...) at `Cut.ROW` and the tensor's own
    at `Cut.TENSOR`. Values are fp32, or fp64 where an operand is fp64. Kernels must not write into
    them.
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
        #: the dtype to which the merge is rounded next, if it is not needed otherwise
        self.stored_dtype: torch.dtype | None = None
        self.operands = operands
        #: the shape of `base`, of one row of `experts`, and of the result
        self.shape = piece_shape(info, self.stop - self.start, cut)
        # Elementwise work takes less time than copying its operands to a GPU.
        #: where the values lie
        self.device = _CPU if cut is Cut.ELEMENT else operands.device

    @lazy
    def base(self) -> torch.Tensor:
        """Read the base's values; raises `WeightsError` if the pool has no base."""
        return self._to_device(self._base)

    @lazy
    def _base(self) -> torch.Tensor:
        if self.operands.base is None:
            raise WeightsError(
                "this algorithm works on task vectors, and the pool has no base",
                hint="Give the model pool the model that the experts were fine-tuned from.",
            )
        return self._read_checked(self.operands.base)

    @lazy
    def merged(self) -> torch.Tensor:
        """Read the merge that a calibration calibrates, of the shape of `base`."""
        return self.extra(MERGED)  # noqa: S610 - not Django's

    def extra(self, name: str) -> torch.Tensor:
        """Read one of the kernel's further operands, of the shape of `base`."""
        return self._to_device(self._read_checked(self.operands.extras[name]))

    @lazy
    def experts(self) -> torch.Tensor:
        """Read the experts' values, stacked in pool order."""
        return self._rows(relative=False)

    def expert(self, index: int) -> torch.Tensor:
        """Read the values of one expert, by its index in pool order, of the shape of `base`.

        A merge of many experts reads one after the other, where `experts` holds all of them.
        """
        row = self._empty()
        self._read_row(row, [*self.operands.experts.values()][index], relative=False)
        return self._to_device(row)

    @lazy
    def task_vectors(self) -> torch.Tensor:
        """Read the experts' differences from the base, stacked in pool order."""
        return self._rows(relative=True)

    @lazy
    def factors(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...] | None:
        """Return factors (m, r) and (r, n) of each expert's task vector; None if one has none.

        Adapters have them. They belong to a whole matrix, as a piece at `Cut.TENSOR` is.
        """
        parts = self.operands.low_rank(self.info.name)
        if self.shape != self.info.shape or parts is None:
            return None
        dtype = self.operands.dtype(self.info.name)
        read = [part.read() for part in parts]
        if self.operands.finite:
            for name, pair in zip(self.names, read, strict=True):
                for factor in pair:
                    check_finite(factor, self.info.name, name)
        return tuple(
            (self._to_device(left.to(dtype)), self._to_device(right.to(dtype)))
            for left, right in read
        )

    @property
    def origin(self) -> torch.Tensor:
        """The base's values or, where the pool has no base, the first expert's."""
        return self.experts[0] if self.operands.base is None else self.base

    @property
    def differences(self) -> torch.Tensor:
        """The experts' differences from `origin`: the task vectors, where the pool has a base."""
        if self.operands.base is None:
            return self.experts - self.origin
        return self.task_vectors

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in pool order."""
        return tuple(self.operands.experts)

    @lazy
    def weights(self) -> torch.Tensor:
        """Return the experts' factors, of shape (experts, 1, ...): they broadcast over experts."""
        factors = self.operands.weights or (1.0,) * len(self.operands.experts)
        column = (len(factors), *[1] * len(self.shape))
        dtype = self.operands.dtype(self.info.name)
        return torch.tensor(factors, dtype=dtype, device=self.device).reshape(column)

    def stored(self, model: WeightSource) -> torch.Tensor:
        """Read a model's values as it stores them: flat, in its dtype, and not checked.

        A model whose `is_delta` is true stores its task vector. For compiled functions.
        """
        return model.read(self.info.name, self.start, self.stop)

    def file_range(self, model: WeightSource) -> tuple[int, int] | None:
        """Return the file's descriptor and the offset of what `stored` reads, if a file has it."""
        return model.file_range(self.info.name, self.start)

    def uniform(self, expert: int) -> torch.Tensor:
        """Return uniform random numbers in [0, 1), one per element, of the shape of `base`.

        Each depends only on the seed, the algorithm, the expert, the tensor and the element's
        index, so a random method gives the same bytes however the work is cut.
        """
        numbers = counter_uniform(self._random_key(expert), self.start, self.stop)
        return self._to_device(numbers.reshape(self.shape))

    def seed(self, expert: int) -> int:
        """Return the 64 signed bits from which `uniform` derives the numbers of an expert."""
        return seed_of(self._random_key(expert))

    def _random_key(self, expert: int) -> str:
        return f"{self.operands.key}\0{self.names[expert]}\0{self.info.name}"

    def _rows(self, *, relative: bool) -> torch.Tensor:
        """Stack the experts or their task vectors."""
        rows = self._empty(len(self.names))
        for row, source in zip(rows, self.operands.experts.values(), strict=True):
            self._read_row(row, source, relative=relative)
        return self._to_device(rows)

    def _read_row(self, row: torch.Tensor, source: WeightSource, *, relative: bool) -> None:
        """Read an expert or its task vector; where the source has the one, compute the other.

        Raises `WeightsError` for values that are not finite, `OutOfRangeError` where only their
        difference is not.
        """
        row.copy_(self._read(source))
        if source.is_delta != relative:
            row.add_(self._base, alpha=-1 if relative else 1)
        if self.operands.finite and not is_finite(row):  # checks both operands at once
            check_finite(self._read(source), self.info.name, source.describe())
            raise OutOfRangeError(
                f"{source.describe()}: tensor {self.info.name!r} and the base's are too far "
                f"apart for a task vector in {row.dtype}",
                hint="Save the models in float64, or check that the expert belongs to this base.",
            )

    def _read_checked(self, source: WeightSource) -> torch.Tensor:
        values = self._empty().copy_(self._read(source))
        if self.operands.finite:
            check_finite(values, self.info.name, source.describe())
        return values

    def _read(self, source: WeightSource) -> torch.Tensor:
        return source.read(self.info.name, self.start, self.stop).reshape(self.shape)

    def _empty(self, *leading: int) -> torch.Tensor:
        dtype = self.operands.dtype(self.info.name)
        pinned = self.device.type == "cuda"  # so that the CPU goes on during the copy to a GPU
        return torch.empty((*leading, *self.shape), dtype=dtype, pin_memory=pinned)

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device, non_blocking=True)


def broadcast_per_expert(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return one value per expert in the dtype and device of `rows`, and broadcasting over them."""
    return values.to(rows).reshape(-1, *[1] * (rows.dim() - 1))


def sum_in_order(rows: Iterator[torch.Tensor] | torch.Tensor) -> torch.Tensor:
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
    # A sum is finite only if all its terms are. It rarely overflows, and only then a second look is
    # needed. torch sums bf16 in fp32 anyway, and does it faster without being asked.
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
        hint="fuse check --scan lists them for all inputs. alignment.nan: allow lets them through.",
    )


def piece_shape(info: TensorInfo, count: int, cut: Cut) -> tuple[int, ...]:
    """Return the shape that a range of `count` elements of a tensor has in a piece."""
    if cut is Cut.TENSOR:
        return info.shape
    if cut is Cut.ROW and len(info.shape) > 1:
        return (count // math.prod(info.shape[1:]), *info.shape[1:]) if count else info.shape
    return (count,)
