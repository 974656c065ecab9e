"""Merges as lazy sources: nothing is computed before it is read.

A `MergedSource` applies a `Kernel` to aligned operands, piece by piece. The kernel is the whole
method; where it needs to know more than a piece (thresholds, norms), it makes a survey first, over
one tensor or over the whole model, by means of a `Scan`. Merges are sources, so they are operands
of further merges.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fusion_core.errors import BrokenPluginError
from fusion_core.weights.merging.execution import SerialExecutor
from fusion_core.weights.merging.piece import (
    Operands,
    OutOfRangeError,
    Piece,
    check_finite,
    is_finite,
    is_merged,
)
from fusion_core.weights.merging.scan import Scan
from fusion_core.weights.source import Cut, WeightSource, check_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.source import TensorInfo

#: The key of a survey of the whole model: no tensor has an empty name.
_WHOLE_MODEL = ""


class Scope(Enum):
    """What a kernel's survey looks at before anything is merged."""

    NONE = "none"
    TENSOR = "tensor"
    MODEL = "model"


class Kernel(ABC):
    """How one piece of the operands becomes one piece of the merge."""

    @property
    def cut(self) -> Cut:
        """How finely tensors may be cut for `merge`.

        Subclasses override it by a property, which may depend on the options. A plain attribute
        works, too, and mypy takes it; pyright does not.
        """
        return Cut.ELEMENT

    @property
    def scope(self) -> Scope:
        """What `survey` looks at; overridden as `cut` is."""
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


@dataclass
class MergedSource(WeightSource):
    """A kernel applied to operands; computed when it is read.

    Its floating-point tensors are fp32 (fp64 where an operand is): a merge of merges rounds once,
    at the end, where a `CastSource` gives them the output's dtype. Tensors that are not
    floating-point are the reference's (the base's, or the first expert's).
    """

    kernel: Kernel
    operands: Operands
    _surveys: dict[str, _Survey] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

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
        try:
            merged = self._merge(self.piece(name, start, stop))
            is_good = not self.operands.finite or is_finite(merged)
        except OutOfRangeError:
            is_good = False
        if not is_good:
            merged = self._merge(self.piece(name, start, stop, wide=True))
        return merged.reshape(-1).to(info.dtype).cpu()

    def piece(self, name: str, start: int, stop: int, *, wide: bool = False) -> Piece:
        """Return what the kernel merges for a range of a tensor, which must be one of `cut`.

        `wide` gives it in fp64: a sum may overflow on the way to a mean that does not.
        """
        info = self.infos[name]
        operands = replace(self.operands, wide=True) if wide else self.operands
        return Piece(operands, info, (start, stop), self.cut, self._state(info))

    def _merge(self, piece: Piece) -> torch.Tensor:
        """Merge a piece; raises `BrokenPluginError` for what is not one tensor of its shape."""
        merged: Any = self.kernel.merge(piece)
        kind = type(self.kernel).__name__
        where = f"algorithm {kind}: for tensor {piece.info.name!r} `merge` returned"
        if not isinstance(merged, Tensor):
            raise BrokenPluginError(f"{where} a {type(merged).__name__}, not a tensor")
        if merged.shape != piece.shape or not merged.dtype.is_floating_point:
            given = f"{merged.dtype} of shape {list(merged.shape)}"
            raise BrokenPluginError(
                f"{where} {given}, not floating-point numbers of shape {list(piece.shape)}",
                hint="Return a tensor of the shape of one row of `piece.experts`.",
            )
        return merged

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The operands."""
        return self.operands.sources

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the operands, then survey what the kernel's scope says."""
        super().prepare(executor, name)
        if name is None and self.kernel.scope is Scope.MODEL:
            self._survey(_WHOLE_MODEL, executor)
        elif name is not None and self._is_surveyed(name):
            self._survey(name, executor)

    def _is_surveyed(self, name: str) -> bool:
        known = name in self.infos and is_merged(self.infos[name])
        return known and self.kernel.scope is Scope.TENSOR

    def describe(self) -> str:
        """Name the kernel."""
        return f"merge by {type(self.kernel).__name__}"

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
        info = self.infos[name]
        values = self._source.read(name, start, stop)
        check_values(values, info, (start, stop), self._source)
        values, dtype = values.to(info.dtype), info.dtype
        if self._finite and dtype.is_floating_point:
            check_finite(values, name, f"{self.describe()} in {dtype}")
        return values

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source that is rounded."""
        return (self._source,)

    def describe(self) -> str:
        """Name the source."""
        return self._source.describe()
