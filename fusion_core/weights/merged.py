"""Merges as lazy sources: nothing is computed before it is read.

A `MergedSource` applies a `Kernel` to aligned operands, piece by piece. The kernel is the whole
method; where it needs to know more than a piece (thresholds, norms), it makes a survey first, over
one tensor or over the whole model, by means of a `Scan`. Merges are sources, so they are operands
of further merges.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fusion_core.errors import BrokenPluginError, WeightsError
from fusion_core.weights.source import Cut, WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fusion_core.weights.format import TensorInfo

#: Units submitted ahead of the one whose result is awaited: their results are held in memory.
_WINDOW = 16

PartT = TypeVar("PartT")
TotalT = TypeVar("TotalT")


class Scope(Enum):
    """What a kernel's survey looks at before anything is merged."""

    NONE = "none"
    TENSOR = "tensor"
    MODEL = "model"


class Kernel(ABC):
    """How one piece of the operands becomes one piece of the merge."""

    @property
    def cut(self) -> Cut:
        """How finely tensors may be cut for `merge`; a subclass may set a plain attribute."""
        return Cut.ELEMENT

    @property
    def scope(self) -> Scope:
        """What `survey` looks at; a subclass may set a plain attribute."""
        return Scope.NONE

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the kernel's own state
        """Gather statistics over a tensor or the model; every `Piece.state` then holds them."""
        raise NotImplementedError

    @abstractmethod
    def merge(self, piece: Piece) -> torch.Tensor:
        """Merge one piece: pure, and the same for the same piece on any thread, in any order.

        Returns a tensor of the shape of one row of `piece.experts`. Sum over experts with
        `in_order`, not with `sum(dim=0)`: its rounding depends on where the piece was cut.
        """


@dataclass(frozen=True)
class Operands:
    """What is merged: aligned sources, each expert's factor, and the key of random numbers."""

    base: WeightSource | None
    experts: Mapping[str, WeightSource]
    weights: tuple[float, ...] = ()
    #: what random numbers derive from, besides expert, tensor and element
    key: str = ""
    #: refuse NaN and infinity, in and out
    finite: bool = True

    @property
    def reference(self) -> WeightSource:
        """The source that gives names, order, shapes, and tensors that are not merged."""
        return self.base if self.base is not None else next(iter(self.experts.values()))

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The base, if there is one, and the experts."""
        return (*([] if self.base is None else [self.base]), *self.experts.values())

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype to compute a tensor in: fp64 if an operand is, else fp32."""
        wide = any(each.infos[name].dtype is torch.float64 for each in self.sources)
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
        self._shape = _piece_shape(info, self.stop - self.start, cut)

    @cached_property
    def base(self) -> torch.Tensor:
        """The base's values; raises `WeightsError` if the pool has no base."""
        if self._operands.base is None:
            raise WeightsError(
                "this algorithm works on task vectors, and the pool has no base",
                hint="Name the model that the experts were fine-tuned from: model_pool.base.",
            )
        return self._read(self._operands.base)

    @cached_property
    def experts(self) -> torch.Tensor:
        """The experts' values, stacked in pool order."""
        return torch.stack([self._read(source) for source in self._operands.experts.values()])

    @cached_property
    def task_vectors(self) -> torch.Tensor:
        """The experts' differences from the base, stacked in pool order."""
        return self.experts - self.base

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in pool order."""
        return tuple(self._operands.experts)

    @cached_property
    def weights(self) -> torch.Tensor:
        """The experts' factors, of shape (experts, 1, ...): they broadcast over `experts`."""
        factors = self._operands.weights or (1.0,) * len(self._operands.experts)
        column = (len(factors), *[1] * len(self._shape))
        dtype = self._operands.dtype(self.info.name)
        return torch.tensor(factors, dtype=dtype).reshape(column)

    def uniform(self, expert: int) -> torch.Tensor:
        """Uniform random numbers in [0, 1), one an element, of shape `base`.

        Each depends on the seed, the algorithm, the expert, the tensor and the element's index
        alone, so a random method gives the same bytes however the work is cut.
        """
        key = f"{self._operands.key}\0{self.names[expert]}\0{self.info.name}"
        return counter_uniform(key, self.start, self.stop).reshape(self._shape)

    def _read(self, source: WeightSource) -> torch.Tensor:
        dtype = self._operands.dtype(self.info.name)
        values = source.read(self.info.name, self.start, self.stop).to(dtype)
        if self._operands.finite:
            check_finite(values, self.info.name, source.describe())
        return values.reshape(self._shape)


@dataclass(frozen=True)
class Scan:
    """A pass over the operands in fixed blocks, with partial results folded in a fixed order."""

    operands: Operands
    #: the tensors to look at: one, or all that are merged
    infos: Sequence[TensorInfo]
    executor: Executor
    #: the finest cut at which the operands can be read
    cut: Cut = Cut.ELEMENT

    def __call__(
        self,
        kernel: Callable[[Piece], PartT],
        fold: Callable[[TotalT, PartT], TotalT],
        initial: TotalT,
    ) -> TotalT:
        """Run `kernel` on every block and fold what it returns, in the blocks' order."""

        def part(block: tuple[TensorInfo, tuple[int, int]]) -> PartT:
            return kernel(Piece(self.operands, *block, self.cut))

        total = initial
        for result in run_all(self.executor, part, list(self._blocks())):
            total = fold(total, result)
        return total

    @property
    def numel(self) -> int:
        """Elements in one operand."""
        return sum(info.numel for info in self.infos)

    def _blocks(self) -> Iterator[tuple[TensorInfo, tuple[int, int]]]:
        for info in self.infos:
            for span in self.cut.ranges(info):
                yield info, span


@dataclass
class MergedSource(WeightSource):
    """A kernel applied to operands; computed when it is read.

    Its floating-point tensors are fp32 (fp64 where an operand is): a merge of merges rounds once,
    at the end, where a `CastSource` gives them the output's dtype. Tensors that are not
    floating-point are the reference's (the base's, or the first expert's).
    """

    kernel: Kernel
    operands: Operands
    _states: dict[str, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.infos = {
            name: replace(info, dtype=self.operands.dtype(name)) if is_merged(info) else info
            for name, info in self.operands.reference.infos.items()
        }
        self._operand_cut = Cut.ELEMENT
        for source in self.operands.sources:
            self._operand_cut = self._operand_cut.coarser(source.cut)
        self.cut = self._operand_cut.coarser(self.kernel.cut)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Merge a range of a tensor, which must be one that `cut` gives."""
        info = self.infos[name]
        if not is_merged(info):
            return self.operands.reference.read(name, start, stop)
        piece = Piece(self.operands, info, (start, stop), self.cut, self._state(info))
        merged = self.kernel.merge(piece)
        if merged.numel() != stop - start:
            raise BrokenPluginError(
                f"{self.describe()} made {merged.numel()} elements of the {stop - start} "
                f"from {start} on of tensor {name!r}"
            )
        return merged.reshape(-1).to(info.dtype)

    def prepare(self, executor: Executor) -> None:
        """Make the surveys that span the model, the operands' first."""
        for source in self.operands.sources:
            source.prepare(executor)
        with self._lock:
            if self.kernel.scope is Scope.MODEL and "" not in self._states:
                infos = [info for info in self.infos.values() if is_merged(info)]
                self._states[""] = self._survey(infos, executor)

    def describe(self) -> str:
        """Name the kernel."""
        return f"merge by {type(self.kernel).__name__}"

    def _state(self, info: TensorInfo) -> Any:  # noqa: ANN401 - the kernel's own
        if self.kernel.scope is Scope.NONE:
            return None
        key = info.name if self.kernel.scope is Scope.TENSOR else ""
        with self._lock:
            if key not in self._states and not key:
                self.prepare(SerialExecutor())
            elif key not in self._states:
                self._states[key] = self._survey([info], SerialExecutor())
            return self._states[key]

    def _survey(self, infos: Sequence[TensorInfo], executor: Executor) -> Any:  # noqa: ANN401
        return self.kernel.survey(Scan(self.operands, infos, executor, self._operand_cut))


class CastSource(WeightSource):
    """A source with other dtypes: where a merge is rounded to what it is stored as."""

    def __init__(
        self, source: WeightSource, infos: Mapping[str, TensorInfo], *, finite: bool
    ) -> None:
        """`infos` describes the tensors as they are wanted; `finite` refuses overflow."""
        self._source = source
        self._finite = finite
        self.infos = infos
        self.cut = source.cut

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read and round."""
        dtype = self.infos[name].dtype
        values = self._source.read(name, start, stop).to(dtype)
        if self._finite and dtype.is_floating_point:
            check_finite(values, name, f"{self.describe()} in {dtype}")
        return values

    def prepare(self, executor: Executor) -> None:
        """Prepare the source."""
        self._source.prepare(executor)

    def describe(self) -> str:
        """Name the source."""
        return self._source.describe()


class SerialExecutor(Executor):
    """Runs each call at once, on the thread that submits it."""

    def submit(
        self,
        fn: Callable[..., PartT],
        /,
        *args: Any,  # noqa: ANN401 - whatever `fn` takes
        **kwargs: Any,  # noqa: ANN401
    ) -> Future[PartT]:
        """Run `fn` now."""
        future: Future[PartT] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is the future's to carry
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class Linear(Kernel):
    """base + sum of coefficient * task vector; not `relative`: sum of coefficient * expert.

    `coefficients`: one an expert in pool order, for every tensor alike or by tensor name.
    """

    coefficients: tuple[float, ...] | Mapping[str, tuple[float, ...]]
    relative: bool = True

    def merge(self, piece: Piece) -> torch.Tensor:
        """Combine one piece."""
        values = self.coefficients
        factors = values if isinstance(values, tuple) else values[piece.info.name]
        rows = piece.task_vectors if self.relative else piece.experts
        combined = in_order(row * factor for row, factor in zip(rows, factors, strict=True))
        return piece.base + combined if self.relative else combined


def in_order(rows: Iterator[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension in its order, so that rounding does not depend on cuts."""
    iterator = iter(rows)
    total = next(iterator).clone()
    for row in iterator:
        total += row
    return total


def run_all(
    executor: Executor, function: Callable[[Any], PartT], units: Iterable[Any]
) -> Iterator[PartT]:
    """Run a function on every unit and yield the results in order.

    The first error cancels the units that have not begun and waits for those that have.
    """
    waiting: deque[Future[PartT]] = deque()
    try:
        for unit in units:
            waiting.append(executor.submit(_single_threaded, function, unit))
            if len(waiting) == _WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def _single_threaded(function: Callable[[Any], PartT], unit: object) -> PartT:
    """Run a unit on one core: workers share the others, and sums round the same everywhere."""
    before = torch.get_num_threads()
    if before == 1:
        return function(unit)
    torch.set_num_threads(1)
    try:
        return function(unit)
    finally:
        torch.set_num_threads(before)


def is_merged(info: TensorInfo) -> bool:
    """Tell whether a tensor is merged; integers and booleans are copied."""
    return info.dtype.is_floating_point


def check_finite(values: torch.Tensor, name: str, origin: str) -> None:
    """Raise `WeightsError` naming tensor and model if a value is NaN or infinite."""
    # A sum is finite only if all its terms are; it overflows rarely enough to look twice then.
    wide = torch.promote_types(values.dtype, torch.float32)
    if values.sum(dtype=wide).isfinite() or values.isfinite().all():
        return
    count = int((~values.isfinite()).sum())
    raise WeightsError(
        f"{origin}: tensor {name!r} holds {count} values that are NaN or infinite",
        hint="Check the model, or set alignment.nan to 'allow' to let them through.",
    )


def counter_uniform(key: str, start: int, stop: int) -> torch.Tensor:
    """Uniform fp32 numbers in [0, 1) for the counters start..stop of a key (splitmix64)."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    bits = torch.arange(start, stop, dtype=torch.int64) * -7046029254386353131 + seed
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ _shifted(bits, shift)) * factor
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right without the sign, which torch's int64 would carry along."""
    return (bits >> by).bitwise_and(2 ** (64 - by) - 1)


def _piece_shape(info: TensorInfo, count: int, cut: Cut) -> tuple[int, ...]:
    if cut is Cut.TENSOR:
        return info.shape
    if cut is Cut.ROW and len(info.shape) > 1:
        return (-1, *info.shape[1:]) if info.numel else info.shape
    return (count,)
