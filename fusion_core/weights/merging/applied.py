"""What is computed piece by piece, on operands that are read where they are needed.

A kernel says how finely tensors may be cut for it. Where it needs to know more than a piece
(thresholds, norms), it makes a survey first, over one tensor or over the whole model, by means of a
`Scan`.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from fusion_core.errors import BrokenPluginError
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

    from fusion_core.weights.source import TensorInfo

#: The key of a survey of the whole model: no tensor has an empty name.
_WHOLE_MODEL = ""


class Scope(Enum):
    """What a kernel's survey looks at before anything is merged."""

    NONE = "none"
    TENSOR = "tensor"
    MODEL = "model"


class PieceKernel(ABC):  # noqa: B024 - its two kinds have the abstract methods
    """What every kernel says: how tensors may be cut for it, and what it must know first."""

    @property
    def cut(self) -> Cut:
        """How finely tensors may be cut for it.

        Subclasses override it by a property, which may depend on the options. A plain attribute
        works, too, and mypy takes it; pyright does not.
        """
        return Cut.ELEMENT

    @property
    def scope(self) -> Scope:
        """What `survey` looks at; overridden as `cut` is."""
        return Scope.NONE

    @property
    def is_bounded(self) -> bool:
        """Whether results cannot lie far beyond the operands, so that the engine need not look."""
        return False

    @property
    def pieces_held(self) -> tuple[float, float]:
        """How many tensors of a piece's shape one worker holds while it computes the piece.

        So many and, per expert, so many more: operands, results, and all that is there at once on
        the way. Overridden as `cut` is.
        """
        return (5, 2)

    def survey(self, scan: Scan) -> Any:  # noqa: ANN401 - the kernel's own state
        """Gather statistics over a tensor or the model; every `Piece.state` then holds them."""
        raise NotImplementedError

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Return how many numbers one worker holds at most while it computes a piece of a shape.

        In the dtype to compute in: a number that is computed in fp64 counts twice. `fuse check`
        estimates memory from it. By default `pieces_held` says it. A kernel whose need is not a
        multiple of a piece overrides this: one that decomposes matrices holds squares, too.
        """
        own, each = self.pieces_held
        return math.prod(shape) * (own + each * experts)


class Kernel(PieceKernel):
    """How one piece of the operands becomes one piece of the merge."""

    @abstractmethod
    def merge(self, piece: Piece) -> Tensor:
        """Merge one piece: pure, and the same for the same piece on any thread, in any order.

        Returns a tensor of the shape of one row of `piece.experts`. Sum over experts with
        `in_order`, not with `sum(dim=0)`: its rounding depends on where the piece was cut.
        """


class RowsKernel(PieceKernel):
    """How a piece of all task vectors becomes a piece of other task vectors."""

    @abstractmethod
    def rows(self, piece: Piece) -> Tensor:
        """Return other task vectors: pure, as `Kernel.merge` is, of `piece.task_vectors`' shape."""


class CoordinatesKernel(RowsKernel):
    """Task vectors in other coordinates, and the way back from there.

    What is merged in between has its origin in the base: the merge of the coordinates alone.
    """

    @property
    def is_bounded(self) -> bool:
        """Coordinates have a scale of their own; the engine looks at what `restore` makes."""
        return True

    @abstractmethod
    def restore(self, piece: Piece) -> Tensor:
        """Return the task vector whose coordinates are `piece.merged`, of the shape of `base`.

        The piece's task vectors are those that `rows` was given.
        """


KernelT = TypeVar("KernelT", bound=PieceKernel)


@dataclass
class Applied(Generic[KernelT]):
    """A kernel on operands: it gives pieces, with what the kernel's survey found."""

    kernel: KernelT
    operands: Operands
    _surveys: dict[str, _Survey] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

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

    def piece(self, name: str, start: int, stop: int, *, wide: bool = False) -> Piece:
        """Return what the kernel sees of a range of a tensor, which must be one of `cut`.

        `wide` gives it in fp64: a sum may overflow on the way to a mean that does not.
        """
        info = self.infos[name]
        operands = replace(self.operands, wide=True) if wide else self.operands
        return Piece(operands, info, (start, stop), self.cut, self._state(info))

    def compute(
        self, method: Callable[[Piece], Tensor], span: tuple[str, int, int], rows: int | None = None
    ) -> Tensor:
        """Call a method of the kernel on a piece: again, in fp64, for what was out of range.

        `rows` is how many rows it has to return, None for one that has no such dimension. Raises
        `BrokenPluginError` for what is not one tensor of the piece's shape.
        """
        with on_one_core():  # whoever reads it: a decomposition rounds otherwise on several
            piece = self.piece(*span)
            try:
                computed = self._called(method, piece, rows)
                is_good = not self.operands.finite or is_finite(computed)
            except OutOfRangeError:
                is_good = False
            if not is_good:
                piece = self.piece(*span, wide=True)
                computed = self._called(method, piece, rows)
            if self._guard is not None:
                moved = computed - piece.origin if rows is None else computed
                self._guard.check(moved, piece, self._bounding(span[0]), self.method)
        return computed

    @property
    def method(self) -> str:
        """What to call the kernel: the name of its stage or, by hand, of its class."""
        return self.operands.method or type(self.kernel).__name__

    def _bounding(self, name: str) -> Iterator[Piece]:
        """Yield the pieces that the bound of a tensor depends on, without what a survey found."""
        for info in self.infos.values():
            if info.name == name or (self.operands.bound is Bound.MODEL and is_merged(info)):
                spans = self.cut.ranges(info)
                yield from (Piece(self.operands, info, span, self.cut) for span in spans)

    def _called(self, method: Callable[[Piece], Tensor], piece: Piece, rows: int | None) -> Tensor:
        computed: Any = method(piece)
        name = f"`{method.__name__}`"
        where = f"algorithm {type(self.kernel).__name__}: for tensor {piece.info.name!r} {name}"
        if not isinstance(computed, Tensor):
            raise BrokenPluginError(f"{where} returned a {type(computed).__name__}, not a tensor")
        shape = piece.shape if rows is None else (rows, *piece.shape)
        if computed.shape != shape or not computed.dtype.is_floating_point:
            given = f"{computed.dtype} of shape {list(computed.shape)}"
            like = "one row of `piece.experts`" if rows is None else "`piece.task_vectors`"
            raise BrokenPluginError(
                f"{where} returned {given}, not floating-point numbers of shape {list(shape)}",
                hint=f"Return a tensor of the shape of {like}.",
            )
        return computed

    def make_surveys(self, executor: Executor, name: str | None) -> None:
        """Survey the model, or one tensor, as the kernel's scope says."""
        if name is None and self.kernel.scope is Scope.MODEL:
            self._survey(_WHOLE_MODEL, executor)
        elif name is not None and self._is_surveyed(name):
            self._survey(name, executor)

    def _is_surveyed(self, name: str) -> bool:
        known = name in self.infos and is_merged(self.infos[name])
        return known and self.kernel.scope is Scope.TENSOR

    def __getstate__(self) -> dict[str, Any]:
        finished = {key: each for key, each in self._surveys.items() if each.done}
        return {**self.__dict__, "_surveys": finished, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _state(self, info: TensorInfo) -> Any:  # noqa: ANN401 - the kernel's own
        if self.kernel.scope is Scope.NONE:
            return None
        key = info.name if self.kernel.scope is Scope.TENSOR else _WHOLE_MODEL
        return self._survey(key, SerialExecutor())

    def _survey(self, key: str, executor: Executor) -> Any:  # noqa: ANN401
        with self._lock:
            survey = self._surveys.setdefault(key, _Survey())
        with on_one_core():
            return survey.made(lambda: self.kernel.survey(self._scan(key, executor)))

    def _scan(self, key: str, executor: Executor) -> Scan:
        names = self.infos if key == _WHOLE_MODEL else [key]
        infos = [self.infos[name] for name in names if is_merged(self.infos[name])]
        return Scan(self.operands, infos, executor, self._operand_cut)


class _Survey:
    """What a kernel's survey found: made once, whoever asks first."""

    def __init__(self) -> None:
        self.done = False
        self._found: Any = None
        self._lock = threading.Lock()

    def made(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - the kernel's own
        """Return it, made now if nobody has; one that fails is made anew by whoever asks next."""
        with self._lock:
            if not self.done:
                self._found = make()
                self.done = True
            return self._found

    def __getstate__(self) -> dict[str, Any]:
        return {"done": self.done, "_found": self._found}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)
