"""Compiled functions, which plugins offer in place of functions of torch's operations.

The function that one replaces remains the definition: a compiled function returns the same bytes,
or leaves a piece to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import BrokenPluginError
from fusion_core.machine.distributions import summarize_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from fusion_core.weights.merging.piece import Operands, Piece
    from fusion_core.weights.source import TensorInfo

    Function = Callable[[Piece], Any]

#: The kernels of this process by "module:class", and those that another thread loads.
_loaded: dict[str, CompiledFunction] = {}
_loading: set[str] = set()


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

        None is for pieces that hold NaN or infinity, about which `function` raises the error.
        `function` is the bound method, the `partial`, or the object that would be called.
        """


def call(function: Function, piece: Piece) -> Any:  # noqa: ANN401 - as of `function`
    """Call a function of a piece, or what replaces it among the kernels of the operands."""
    if piece.operands.kernels and piece.device.type == "cpu":
        replacement = _find(function, piece.operands, piece.info)
        result = None if replacement is None else replacement(function, piece)
        if result is not None:
            return result
    return function(piece)


def kernel_for(function: Function, operands: Operands, info: TensorInfo) -> str | None:
    """Return the name of the kernel that can replace a function for a tensor, or None.

    The result does not depend on when kernels are loaded, and loads those that are not.
    """
    kernel = operands.kernels.get(_name_of(function))
    if kernel is None or operands.dtype(info.name) is not torch.float32:
        return None
    name, target = kernel
    replacement = _loaded.get(target) or _load(target)
    return name if replacement.fits(function, operands, info) else None


def load_in_background(targets: Collection[str]) -> None:
    """Load kernels on another thread, because a compiler takes most of a second to import.

    `targets` are "module:class". Until they are loaded, the functions themselves are called.
    """
    missing = [target for target in dict.fromkeys(targets) if target not in _loaded]
    _loading.update(missing)
    Thread(target=_load_all, args=(missing,), name="fusion-kernels", daemon=True).start()


def _find(function: Function, operands: Operands, info: TensorInfo) -> CompiledFunction | None:
    kernel = operands.kernels.get(_name_of(function))
    if kernel is None or kernel[1] in _loading:
        return None
    if operands.dtype(info.name) is not torch.float32:
        return None
    replacement = _loaded.get(kernel[1]) or _load(kernel[1])
    return replacement if replacement.fits(function, operands, info) else None


def _load_all(targets: Iterable[str]) -> None:
    for target in targets:
        with suppress(BrokenPluginError):  # the next call loads it again, and raises
            _load(target)
        _loading.discard(target)


def _load(target: str) -> CompiledFunction:
    module, _, name = target.partition(":")
    try:
        compiled: CompiledFunction = getattr(import_module(module), name)()
    except Exception as error:
        raise BrokenPluginError(
            f"the kernel {target} cannot be loaded: {summarize_error(error)}",
            hint="Install its package wherever workers run, or set FUSION_KERNELS=torch.",
        ) from error
    return _loaded.setdefault(target, compiled)


def _name_of(function: Any) -> str:  # noqa: ANN401 - a bound method, a partial, or an object
    if isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
