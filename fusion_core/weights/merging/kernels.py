"""Kernels, and kernels applied to operands that are read piece by piece.

A kernel says how finely tensors may be cut for it. If it needs to know more than one piece, such as
thresholds or norms, it first surveys one tensor or the whole model by means of a `Scan`.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from fusion_core.errors import BrokenPluginError
from fusion_core.weights.merging.compiled import call_on_piece, kernel_for
from fusion_core.weights.merging.execution import SerialExecutor, on_one_core
from fusion_core.weights.merging.outliers import OutlierGuard
from fusion_core.weights.merging.piece import (
    Bound,
    Operands,
    OutOfRangeError,
    Piece,
    is_finite,
    is_merged,
)
from fusion_core.weights.merging.scan import Scan
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.source import TensorInfo

#: The key of a survey of the whole model: no tensor has an empty name.
_WHOLE_MODEL = ""


class Scope(Enum):
    """The tensors that a kernel's survey sees before anything is merged."""

    NONE = "none"
    TENSOR = "tensor"
    MODEL = "model"


class PieceKernel(ABC):  # noqa: B024 - its subclasses have the abstract methods
    """The declarations of all kernels: how finely to cut tensors, and what a survey must find."""

    @property
    def cut(self) -> Cut:
        """How finely tensors may be cut for this kernel.

        Subclasses override it by a property, which may depend on the options. A plain attribute
        also works, and mypy accepts it; pyright does not.
        """
        return Cut.ELEMENT

    @property
    def scope(self) -> Scope:
        """The tensors that `survey` looks at; override it like `cut`."""
        return Scope.NONE

    @property
    def as_stored(self) -> bool:
        """Whether tensors are merged as they are stored, and not each matrix inside of them."""
        return False

    @property
    def is_bounded(self) -> bool:
        """Whether results cannot lie far beyond the operands, so the engine need not check."""
        return False

    @property
    def pieces_held(self) -> tuple[float, float]:
        """How many tensors of a piece's shape one worker holds while it computes the piece.

        A fixed number, and a number per expert: operands, results, and all temporary tensors that
        exist at the same time. Override it like `cut`.
        """
        return (5, 2)

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the kernel's own state
        """Gather statistics over a tensor or the model; every `Piece.state` then holds them."""
        raise NotImplementedError

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Return how many numbers one worker holds at most while it computes a piece of a shape.

        It counts numbers of the dtype to compute in: one that is computed in fp64 counts twice.
        `fuse check` estimates memory from it. The default follows from `pieces_held`. Override it
        for a kernel whose need is not a multiple of a piece: one that decomposes matrices also
        holds squares.
        """
        fixed, per_expert = self.pieces_held
        return math.prod(shape) * (fixed + per_expert * experts)


class Kernel(PieceKernel):
    """How one piece of the operands becomes one piece of the merge."""

    @abstractmethod
    def merge(self, piece: Piece) -> Tensor:
        """Merge one piece: pure, and the same for the same piece on any thread, in any order.

        Returns a tensor of the shape of one row of `piece.experts`. Sum over experts with
        `sum_in_order`, not with `sum(dim=0)`: its rounding depends on where the piece was cut.
        """

    def constant_coefficients(self, name: str) -> tuple[float, ...] | None:
        """Return one factor per expert if the merge adds the scaled task vectors to the base.

        None, the default, says that the merge of this tensor is not such a sum.
        """
        del name
        return None


class RowsKernel(PieceKernel):
    """How a piece of all task vectors becomes a piece of other task vectors."""

    @abstractmethod
    def rows(self, piece: Piece) -> Tensor:
        """Return other task vectors of the shape of `piece.task_vectors`; pure, like `merge`."""


class CoordinatesKernel(RowsKernel):
    """Task vectors in other coordinates, and the way back.

    Merges between the two have their origin in the base: they merge the coordinates alone.
    """

    @property
    def is_bounded(self) -> bool:
        """Coordinates have a scale of their own; the engine checks what `restore` returns."""
        return True

    @abstractmethod
    def restore(self, piece: Piece) -> Tensor:
        """Return the task vector whose coordinates are `piece.merged`, of the shape of `base`.

        The piece's task vectors are those that `rows` was given.
        """


KernelT = TypeVar("KernelT", bound=PieceKernel)


@dataclass
class _Survey:
    """The result of one survey: the first thread to need it makes it, and others wait."""

    is_done: bool = False
    result: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class AppliedKernel(ABC, Generic[KernelT]):
    """A kernel applied to operands: it computes pieces, and keeps the results of surveys."""

    kernel: KernelT
    operands: Operands
    _surveys: dict[str, _Survey] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _unchanged: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(info, dtype=self.operands.dtype(name)) if is_merged(info) else info
            for name, info in self.operands.reference.infos.items()
        }
        self._operand_cut = Cut.ELEMENT
        for source in self.operands.sources:
            self._operand_cut = self._operand_cut.coarser(source.cut)
        self.cut = self._operand_cut.coarser(self.kernel.cut)
        bound = Bound.NONE if self.kernel.is_bounded else self.operands.bound
        self._guard = None if bound is Bound.NONE else OutlierGuard(bound)

    @property
    @abstractmethod
    def function(self) -> Callable[[Piece], Tensor]:
        """The kernel's method that computes a piece."""

    @property
    def method(self) -> str:
        """The kernel's name in errors: that of its stage or, by default, of its class."""
        return self.operands.method or type(self.kernel).__name__

    def is_unchanged(self, name: str) -> bool:
        """Tell whether it is known without reading that all experts equal the base in a tensor.

        It is known of what an adapter does not change.
        """
        if name not in self._unchanged:
            parts = self.operands.low_rank(name)
            self._unchanged[name] = parts is not None and not any(part.rank for part in parts)
        return self._unchanged[name]

    def computes(self, name: str) -> bool:
        """Tell whether the kernel computes a tensor: it neither copies it nor knows its values."""
        return is_merged(self.infos[name]) and not self.is_unchanged(name)

    def piece(self, name: str, start: int, stop: int, *, wide: bool = False) -> Piece:
        """Return what the kernel sees of a range of a tensor, which must be one of `cut`.

        `wide` gives it in fp64: a sum may overflow on the way to a mean that does not.
        """
        info = self.infos[name]
        operands = replace(self.operands, wide=True) if wide else self.operands
        state = None
        if self.kernel.scope is not Scope.NONE:
            key = name if self.kernel.scope is Scope.TENSOR else _WHOLE_MODEL
            state = self._survey(key, SerialExecutor())
        return Piece(operands, info, (start, stop), self.cut, state)

    def compute(
        self,
        method: Callable[[Piece], Tensor],
        span: tuple[str, int, int],
        *,
        rows: int | None = None,
        stored_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Call a method of the kernel on a piece, and again in fp64 if the result is not finite.

        `rows` is how many rows the method has to return; None for a result without that dimension.
        A compiled function may round the result to `stored_dtype`, unless its bound is checked. A
        result of this dtype is finite.
        Raises `BrokenPluginError` if the method does not return one tensor of the piece's shape.
        """
        with on_one_core():  # for every caller: on several cores, a decomposition rounds otherwise
            piece = self.piece(*span)
            if self._guard is None:
                piece.stored_dtype = stored_dtype
            try:
                computed = self._call(method, piece, rows)
                if computed.dtype is piece.stored_dtype:
                    return computed  # rounded, and finite
                is_good = not self.operands.finite or is_finite(computed)
            except OutOfRangeError:
                is_good = False
            if not is_good:
                piece = self.piece(*span, wide=True)
                computed = self._call(method, piece, rows)
            if self._guard is not None:
                moved = computed - piece.origin if rows is None else computed
                self._guard.check(moved, piece, self._bounding_pieces(span[0]), self.method)
        if computed.dtype is stored_dtype:  # that of a method itself, which may be infinite
            computed = computed.to(self.infos[span[0]].dtype)
        return computed

    def _call(self, method: Callable[[Piece], Tensor], piece: Piece, rows: int | None) -> Tensor:
        computed: Any = call_on_piece(method, piece)
        where = (
            f"algorithm {type(self.kernel).__name__}: for tensor {piece.info.name!r} "
            f"`{method.__name__}`"
        )
        if not isinstance(computed, Tensor):
            raise BrokenPluginError(f"{where} returned a {type(computed).__name__}, not a tensor")
        shape = piece.shape if rows is None else (rows, *piece.shape)
        if computed.shape != shape or not computed.dtype.is_floating_point:
            model = "one row of `piece.experts`" if rows is None else "`piece.task_vectors`"
            raise BrokenPluginError(
                f"{where} returned {computed.dtype} of shape {list(computed.shape)}, not "
                f"floating-point numbers of shape {list(shape)}",
                hint=f"Return a tensor of the shape of {model}.",
            )
        return computed

    def _bounding_pieces(self, name: str) -> Iterator[Piece]:
        """Yield the pieces that the bound of a tensor depends on, without survey results."""
        for info in self.infos.values():
            if info.name == name or (self.operands.bound is Bound.MODEL and is_merged(info)):
                spans = self.cut.ranges(info)
                yield from (Piece(self.operands, info, span, self.cut) for span in spans)

    def count_compiled(self) -> Counter[str]:
        """Count the tensors that a compiled function serves, by its name."""
        pieces = [
            Piece(self.operands, info, (0, info.numel), self.cut)
            for info in self.infos.values()
            if self.computes(info.name)
        ]
        names = [kernel_for(self.function, piece) for piece in pieces]
        return Counter(name for name in names if name is not None)

    def make_surveys(self, executor: Executor, name: str | None) -> None:
        """Survey the model (`name` is None) or one tensor, if the kernel's scope is that."""
        scope = self.kernel.scope
        if name is None:
            if scope is Scope.MODEL:
                self._survey(_WHOLE_MODEL, executor)
        elif scope is Scope.TENSOR and name in self.infos and self.computes(name):
            self._survey(name, executor)

    def _survey(self, key: str, executor: Executor) -> Any:  # noqa: ANN401 - the kernel's own
        """Return a survey's result. If making it fails, the next caller tries again."""
        with self._lock:
            survey = self._surveys.setdefault(key, _Survey())
        with on_one_core(), survey.lock:
            if not survey.is_done:
                survey.result = self.kernel.survey(self._scan(key, executor))
                survey.is_done = True
            return survey.result

    def _scan(self, key: str, executor: Executor) -> Scan:
        names = self.infos if key == _WHOLE_MODEL else [key]
        infos = [self.infos[name] for name in names if is_merged(self.infos[name])]
        return Scan(self.operands, infos, executor, self._operand_cut)

    def __getstate__(self) -> dict[str, Any]:
        results = {key: survey.result for key, survey in self._surveys.items() if survey.is_done}
        return {**self.__dict__, "_surveys": results, "_unchanged": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        surveys = {
            key: _Survey(is_done=True, result=result) for key, result in state["_surveys"].items()
        }
        self.__dict__.update(state, _surveys=surveys, _lock=threading.Lock())
