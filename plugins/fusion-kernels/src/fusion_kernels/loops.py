"""What all loops share: they go over a piece in strips that stay in the processor's cache.

A loop reads operands by their addresses and widens them to fp32, so one compiled loop serves any
number of experts in any mixture of dtypes. Its arithmetic is IEEE's, in the order in which it is
written: the torch code has the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Floats = npt.NDArray[np.float32]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

#: The elements of a strip.
STRIP = 1024
#: How an operand stores numbers.
FP32, BF16, FP16 = 0, 1, 2
#: The change of an expert after it is read: none, or the base subtracted, or the base added.
AS_STORED, MINUS_BASE, PLUS_BASE = 0, 1, 2
#: The bits of the largest finite number. Those of infinity and NaN are larger.
LARGEST = np.uint32(0x7F7FFFFF)
MAGNITUDE = np.uint32(0x7FFFFFFF)
SIGN = np.uint32(0x80000000)
ZERO, ONE = np.float32(0), np.float32(1)


class Parts(NamedTuple):
    """The operands of one piece, as addresses of flat, contiguous memory."""

    base: int
    base_kind: int
    experts: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    #: what to do with each expert after it is read
    modes: npt.NDArray[np.int64]
    elements: int


def compiled(function: FunctionT) -> FunctionT:
    """Compile a function, once for this machine, so that threads run it side by side."""
    decorate = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=False)
    return cast("FunctionT", decorate(function))


@intrinsic
def _as_pointer(typingctx: Any, address: Any) -> Any:  # noqa: ANN401, ARG001 - numba's types
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401, ARG001
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


_pointer: Any = _as_pointer
_array: Any = numba.carray  # type: ignore[attr-defined] # numba's stub leaves it out


@compiled
def _widen(address: int, kind: int, start: int, size: int, row: Floats) -> None:
    """Read `size` elements from `start` on, widened to fp32, which is exact."""
    bits = row.view(np.uint32)
    if kind == FP32:
        words = _array(_pointer(address + 4 * start), size, np.uint32)
        for i in range(size):
            bits[i] = words[i]
        return
    halves = _array(_pointer(address + 2 * start), size, np.uint16)
    if kind == BF16:
        for i in range(size):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
        return
    # The exponent and mantissa of fp16, shifted into place, are the number times 2^-112.
    for i in range(size):
        bits[i] = (np.uint32(halves[i]) & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(size):
        row[i] *= np.float32(2.0**112)
    for i in range(size):
        half = np.uint32(halves[i])
        is_special = (half & np.uint32(0x7C00)) == np.uint32(0x7C00)
        exponent = np.uint32(0x7F800000) if is_special else np.uint32(0)
        bits[i] |= ((half & np.uint32(0x8000)) << np.uint32(16)) | exponent


@compiled
def read_strip(parts: Parts, start: int, size: int, base: Floats, rows: Floats) -> np.uint32:
    """Read `size` elements of the base and of all experts, or their task vectors.

    Writes into `base`, of shape (STRIP,), and `rows`, of shape (experts, STRIP). Loops over whole
    strips are vectorised, those over a part of a matrix are not. Returns the bits of the largest
    magnitude of an expert or task vector: more than `LARGEST` if one is not finite.
    """
    _widen(parts.base, parts.base_kind, start, size, base)
    largest = np.uint32(0)
    for expert in range(len(parts.experts)):
        row, mode = rows[expert], parts.modes[expert]
        _widen(parts.experts[expert], parts.kinds[expert], start, size, row)
        if mode == MINUS_BASE:
            for i in range(size):
                row[i] -= base[i]
        elif mode == PLUS_BASE:
            for i in range(size):
                row[i] += base[i]
        bits = row.view(np.uint32)
        for i in range(size):
            largest = max(largest, bits[i] & MAGNITUDE)
    return largest


@compiled
def add_weighted(rows: Floats, weights: Floats, size: int, total: Floats) -> None:
    """Multiply rows by their weights in place, and sum them in their order."""
    for expert in range(len(rows)):
        row, weight = rows[expert], weights[expert]
        if expert == 0:
            for i in range(size):
                row[i] *= weight
                total[i] = row[i]
        else:
            for i in range(size):
                row[i] *= weight
                total[i] += row[i]


def _load_compiler() -> None:
    """Read one element: the first call of any loop loads most of the compiler."""
    one = np.ones(1, np.float32)
    address = one.ctypes.data
    experts, none = np.array([address]), np.zeros(1, np.int64)
    parts = Parts(address, FP32, experts, none, none, 1)
    read_strip(parts, 0, 1, one.copy(), np.empty((1, STRIP), np.float32))


_load_compiler()  # for whoever imports this module, perhaps in the background
