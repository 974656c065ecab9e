"""Compiled functions, which plugins offer in place of functions of torch's operations.

The function that one replaces remains the definition: a compiled function returns the same bytes,
or leaves a piece to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import BrokenPluginError
from fusion_core.machine.distributions import summarize_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.weights.merging.piece import Operands, Piece
    from fusion_core.weights.source import TensorInfo

    Function = Callable[[Piece], Any]


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
    """Return the name of the kernel that replaces a function for a tensor, or None."""
    is_replaced = _find(function, operands, info) is not None
    return operands.kernels[_name_of(function)][0] if is_replaced else None


def _find(function: Function, operands: Operands, info: TensorInfo) -> CompiledFunction | None:
    kernel = operands.kernels.get(_name_of(function))
    if kernel is None or operands.dtype(info.name) is not torch.float32:
        return None
    replacement = _make(kernel[1])
    return replacement if replacement.fits(function, operands, info) else None


@cache
def _make(target: str) -> CompiledFunction:
    module, _, name = target.partition(":")
    try:
        compiled: CompiledFunction = getattr(import_module(module), name)()
    except Exception as error:
        raise BrokenPluginError(
            f"the kernel {target} cannot be loaded: {summarize_error(error)}",
            hint="Install its package wherever workers run, or set FUSION_KERNELS=torch.",
        ) from error
    return compiled


def _name_of(function: Any) -> str:  # noqa: ANN401 - a bound method, a partial, or an object
    if isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
