"""Compiled functions, which plugins offer in place of functions of torch's operations.

The function that one replaces remains the definition: a compiled function returns the same bytes,
or leaves a piece to it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from threading import Lock, Thread
from time import monotonic
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fusion_core.errors import BrokenPluginError, WeightsError
from fusion_core.machine.distributions import summarize_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.weights.merging.piece import Operands, Piece
    from fusion_core.weights.source import TensorInfo

    Function = Callable[[Piece], Any]

ResultT = TypeVar("ResultT")

#: The environment variable that chooses `torch` (no kernels) or `compiled` (all, at once).
KERNELS_VARIABLE = "FUSION_KERNELS"
#: Seconds from the beginning of loading for which pieces wait. Cached machine code is there after 5
#: to 30 ms, and pieces that do not wait take several times as much memory.
_PATIENCE = 0.2
#: The kernels of this process by "module:class", and until when pieces wait for them.
_kernels: dict[str, tuple[Future[CompiledFunction], float]] = {}
_lock = Lock()


class CompiledFunction(ABC):
    """A compiled function in place of one that maps a piece to a result.

    A plugin registers a subclass by a `KernelSpec`, which names the functions that it replaces: the
    `merge` or `rows` of a method, or the function of a `Scan`. The engine asks only for pieces on
    the CPU that are computed in fp32. Example::

        import torch

        from fusion_core.weights import CompiledFunction

        class Average(CompiledFunction):
            def fits(self, function, operands, info):
                return operands.base is None

            def __call__(self, function, piece):
                experts = [piece.stored(model) for model in piece.operands.experts.values()]
                out = torch.empty(piece.shape)
                is_finite = average_in_c(experts, out)
                return out if is_finite else None
    """

    @abstractmethod
    def fits(self, function: Function, operands: Operands, info: TensorInfo) -> bool:
        """Tell whether it computes what `function` computes of this tensor, options included."""

    @abstractmethod
    def __call__(self, function: Function, piece: Piece) -> Any:  # noqa: ANN401 - as of `function`
        """Return what `function` returns of a piece, or None to leave the piece to it.

        None is for pieces that hold NaN or infinity, about which `function` raises the error. A
        merge may be rounded to `piece.stored_dtype`, if that is not None and it remains finite.
        `function` is the bound method, the `partial`, or the object that would be called.
        """

    def blocks_at_once(self, function: Function, piece: Piece) -> int:  # noqa: ARG002
        """Return how many blocks of a tensor to compute at once; `piece` is the first of them.

        Several need fewer calls. Their result must be the same as that of the blocks one by one,
        and the function should hold little per element: it may read files in small parts.
        """
        return 1


def call_on_piece(function: Callable[[Piece], ResultT], piece: Piece) -> ResultT:
    """Call a function of a piece, or the kernel of the operands that replaces it.

    Raises `WeightsError` for a matrix that torch cannot decompose, as it is with NaN.
    """
    replacement = _find(function, piece)
    result: ResultT | None = None if replacement is None else replacement(function, piece)
    if result is None:
        piece.stored_dtype = None  # only kernels say by this dtype that a result is finite
        try:
            result = function(piece)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise WeightsError(
                f"the matrix {piece.info.name!r} cannot be decomposed: {error}",
                hint="If alignment.nan is 'allow', a model may hold NaN or infinity there: leave "
                "the tensor out by algorithm.skip, or use another method.",
            ) from error
    return result


def has_kernel(function: Function, operands: Operands) -> bool:
    """Tell whether a kernel of the operands may replace a function; loads nothing."""
    return _name_of(function) in operands.kernels


def is_compiled(function: Function, piece: Piece) -> bool:
    """Tell whether a kernel serves a function of a piece now; if not yet, begin to load it.

    For functions that gain only if they are compiled.
    """
    return _find(function, piece) is not None


def blocks_at_once(function: Function, piece: Piece) -> int:
    """Return how many blocks the function of a piece takes at once: several if a kernel does."""
    replacement = _find(function, piece)
    return 1 if replacement is None else replacement.blocks_at_once(function, piece)


def kernel_for(function: Function, piece: Piece) -> str | None:
    """Return the name of the kernel that serves a function of a piece, or None.

    It waits for a kernel that is being loaded, so that the result is always the same.
    """
    is_served = _find(function, piece, waits=True) is not None
    return piece.operands.kernels[_name_of(function)][0] if is_served else None


def _find(function: Function, piece: Piece, *, waits: bool = False) -> CompiledFunction | None:
    operands, info = piece.operands, piece.info
    if not operands.kernels or piece.device.type != "cpu":
        return None
    kernel = operands.kernels.get(_name_of(function))
    if kernel is None or operands.dtype(info.name) is not torch.float32:
        return None
    replacement = _load(kernel[1], waits=waits or os.environ.get(KERNELS_VARIABLE) == "compiled")
    is_served = replacement is not None and replacement.fits(function, operands, info)
    return replacement if is_served else None


def _load(target: str, *, waits: bool) -> CompiledFunction | None:
    """Return the kernel "module:class", or None if another thread still loads it.

    Then the functions themselves are called. Loading may take seconds: what a plugin compiles on
    its first use, it compiles then. The process ends only after that: otherwise every short merge
    would compile in vain.
    """
    with _lock:
        is_new = target not in _kernels
        future, deadline = _kernels.setdefault(target, (Future(), monotonic() + _PATIENCE))
    if is_new:
        Thread(target=_import, args=(target, future), name="fusion-kernels").start()
    try:
        return future.result(None if waits else max(0.0, deadline - monotonic()))
    except TimeoutError:
        return None


def _import(target: str, future: Future[CompiledFunction]) -> None:
    module, _, name = target.partition(":")
    try:
        future.set_result(getattr(import_module(module), name)())
    except Exception as error:  # noqa: BLE001 - whatever a plugin's module raises
        broken = BrokenPluginError(
            f"the kernel {target} cannot be loaded: {summarize_error(error)}",
            hint="Install its package wherever workers run, or set FUSION_KERNELS=torch.",
        )
        broken.__cause__ = error
        future.set_exception(broken)


def _name_of(function: Any) -> str:  # noqa: ANN401 - a bound method, a partial, or an object
    """Return a function's "module:name". A method that another package inherits has its own.

    A kernel computes what its package's class does. A subclass elsewhere may override what the
    method calls.
    """
    if isinstance(function, partial):
        function = function.func
    if isinstance(function, MethodType):
        owner = type(function.__self__)
        if _package_of(owner) != _package_of(function):
            return f"{owner.__module__}:{owner.__qualname__}.{function.__name__}"
        function = function.__func__
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _package_of(defined: Any) -> str:  # noqa: ANN401 - a class or a function
    package: str = defined.__module__.partition(".")[0]
    return package
