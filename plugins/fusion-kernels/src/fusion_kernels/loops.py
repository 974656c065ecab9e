"""What all loops share: reading a strip of an operand in fp32, from whatever dtype it has.

A loop goes over a piece in strips that stay in the processor's cache. It reads operands by their
addresses, so that one compiled loop serves any number of experts in any mixture of dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Floats = npt.NDArray[np.float32]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

#: The elements of a strip.
STRIP = 1024
#: How an operand stores numbers.
FP32, BF16, FP16 = 0, 1, 2
#: What is done to an operand after it is read: nothing, or the base is subtracted or added.
AS_STORED, MINUS_BASE, PLUS_BASE = 0, 1, 2
#: Larger magnitudes, as integers, are infinity and NaN.
LARGEST = 0x7F7FFFFF


def compiled(function: FunctionT) -> FunctionT:
    """Compile a function. Its arithmetic is IEEE's, in the order that it is written in."""
    decorate = njit(nogil=True, cache=True, error_model="numpy", fastmath=False)
    return cast("FunctionT", decorate(function))


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:  # noqa: ANN401, ARG001 - numba's types
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401, ARG001
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@compiled
def widen(address: int, kind: int, start: int, row: Floats, count: int) -> None:
    """Read `count` elements from `start` on, and widen them to fp32, exactly."""
    bits = row.view(np.uint32)
    if kind == FP32:
        words = carray(_pointer(address + 4 * start), count, np.uint32)
        for i in range(count):
            bits[i] = words[i]
        return
    halves = carray(_pointer(address + 2 * start), count, np.uint16)
    if kind == BF16:
        for i in range(count):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
        return
    # The exponent and mantissa of fp16, shifted into place, are the number times 2^-112.
    for i in range(count):
        bits[i] = (np.uint32(halves[i]) & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(count):
        row[i] *= np.float32(2.0**112)
    for i in range(count):
        half = np.uint32(halves[i])
        is_special = (half & np.uint32(0x7C00)) == np.uint32(0x7C00)
        exponent = np.uint32(0x7F800000) if is_special else np.uint32(0)
        bits[i] |= ((half & np.uint32(0x8000)) << np.uint32(16)) | exponent


@compiled
def read_row(  # noqa: PLR0913, PLR0917 - one strip of one operand
    address: int, kind: int, mode: int, base: Floats, start: int, row: Floats, count: int
) -> np.uint32:
    """Read an expert or its task vector, and return the largest magnitude as an integer."""
    widen(address, kind, start, row, count)
    if mode == MINUS_BASE:
        for i in range(count):
            row[i] -= base[i]
    elif mode == PLUS_BASE:
        for i in range(count):
            row[i] += base[i]
    bits = row.view(np.uint32)
    largest = np.uint32(0)
    for i in range(count):
        largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
    return largest
