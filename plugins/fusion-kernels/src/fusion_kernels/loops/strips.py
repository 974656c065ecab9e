"""What all loops share: they go over a piece in strips that stay in the processor's cache.

A loop reads operands by their addresses and widens them to fp32, so one compiled loop serves any
number of experts in any mixture of dtypes. Its arithmetic is IEEE's, in the order in which it is
written: the torch code has the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from fusion_kernels.layout import (
    ADDRESS,
    ADDS_BASE,
    AS_STORED,
    BASE,
    BF16,
    EXPERTS,
    FIRST_EXPERT,
    FP32,
    KIND,
    MINUS_BASE,
    MODE,
    OWN_STRIPS,
    PER_MODEL,
    STRIP,
)

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

#: The bits of the largest finite number. Those of infinity and NaN are larger.
LARGEST = np.uint32(0x7F7FFFFF)
MAGNITUDE = np.uint32(0x7FFFFFFF)
SIGN = np.uint32(0x80000000)
ZERO, ONE = np.float32(0), np.float32(1)
#: The strips of the scratch memory that every loop has; its own begin at `OWN`.
_BASE, _NEGATED, _ZEROS, OWN = 0, 1, 2, 3

_pointer_type: Any = types.CPointer  # numba does not annotate it


def inlined(function: FunctionT) -> FunctionT:
    """Let loops call a function."""
    return cast("FunctionT", numba.njit(error_model="numpy")(function))


def _pointer_to(element: Any) -> Any:  # noqa: ANN401 - numba's types
    """Return a function from an address to a pointer, which is indexed like an array."""

    @intrinsic
    def point(typingctx: Any, address: Any) -> Any:  # noqa: ANN401, ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
            pointer = context.get_value_type(signature.return_type)
            return builder.inttoptr(arguments[0], pointer)

        return _pointer_type(element)(types.int64), generate

    return point


def _reinterpret(source: Any, target: Any) -> Any:  # noqa: ANN401 - numba's types
    """Return a function that gives the bits of a number another type."""

    @intrinsic
    def convert(typingctx: Any, value: Any) -> Any:  # noqa: ANN401, ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
            return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

        return target(source), generate

    return convert


def _root_of(element: Any) -> Any:  # noqa: ANN401 - numba's types
    """Return a function to the square root, one instruction: `np.sqrt` calls the C library."""

    @intrinsic
    def root(typingctx: Any, value: Any) -> Any:  # noqa: ANN401, ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401, ARG001
            instruction = builder.module.declare_intrinsic("llvm.sqrt", [arguments[0].type])
            return builder.call(instruction, arguments)

        return element(element), generate

    return root


floats: Callable[[int], Floats] = _pointer_to(types.float32)
doubles: Callable[[int], Doubles] = _pointer_to(types.float64)
words: Callable[[int], Words] = _pointer_to(types.uint32)
halves: Callable[[int], npt.NDArray[np.uint16]] = _pointer_to(types.uint16)
signed: Callable[[int], npt.NDArray[np.int8]] = _pointer_to(types.int8)
integers: Callable[[int], npt.NDArray[np.int64]] = _pointer_to(types.int64)
bits_of: Callable[[np.float32], np.uint32] = _reinterpret(types.float32, types.uint32)
float_of: Callable[[np.uint32], np.float32] = _reinterpret(types.uint32, types.float32)
square_root: Callable[[np.float32], np.float32] = _root_of(types.float32)


@inlined
def strip_of(scratch: int, number: int) -> Floats:
    """Return a strip of the scratch memory."""
    return floats(scratch + 4 * STRIP * number)


@inlined
def base_of(scratch: int) -> Floats:
    """Return the strip that `read_strip` fills with the base."""
    return strip_of(scratch, _BASE)


@inlined
def row_of(scratch: int, expert: int) -> Floats:
    """Return the strip that `read_strip` fills with an expert or its task vector."""
    return strip_of(scratch, OWN_STRIPS + expert)


@inlined
def widen_bf16(half: np.uint16) -> np.float32:
    """Return the same number in fp32."""
    return float_of(np.uint32(np.uint32(half) << np.uint32(16)))


@inlined
def widen_fp16(half: np.uint16) -> np.float32:
    """Return the same number in fp32."""
    bits = np.uint32(half)
    # The exponent and mantissa of fp16, shifted into place, are the number times 2^-112.
    magnitude = float_of(np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)))
    is_special = (bits & np.uint32(0x7C00)) == np.uint32(0x7C00)
    exponent = np.uint32(0x7F800000) if is_special else np.uint32(0)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    return float_of(np.uint32(bits_of(magnitude * np.float32(2.0**112)) | sign | exponent))


@inlined
def _read(address: int, kind: int, start: int, size: int, less: Floats, row: Floats) -> np.uint32:
    """Read elements from `start` on, subtract `less`, and return the largest magnitude's bits."""
    largest = np.uint32(0)
    if kind == FP32:
        singles = floats(address + 4 * start)
        for i in range(size):
            value = singles[i] - less[i]
            row[i] = value
            largest = max(largest, np.uint32(bits_of(value) & MAGNITUDE))
    elif kind == BF16:
        stored = halves(address + 2 * start)
        for i in range(size):
            value = widen_bf16(stored[i]) - less[i]
            row[i] = value
            largest = max(largest, np.uint32(bits_of(value) & MAGNITUDE))
    else:
        stored = halves(address + 2 * start)
        for i in range(size):
            value = widen_fp16(stored[i]) - less[i]
            row[i] = value
            largest = max(largest, np.uint32(bits_of(value) & MAGNITUDE))
    return largest


@inlined
def read_strip(parts: int, scratch: int, start: int, size: int) -> np.uint32:
    """Read `size` elements of the base and of all experts, or their task vectors.

    Fills `base_of(scratch)` and `row_of(scratch, expert)`. Returns the bits of the largest
    magnitude of an expert or task vector: more than `LARGEST` if one is not finite.
    """
    layout = integers(parts)
    zeros, negated, base = (
        strip_of(scratch, _ZEROS),
        strip_of(scratch, _NEGATED),
        strip_of(scratch, _BASE),
    )
    _read(layout[BASE + ADDRESS], layout[BASE + KIND], start, size, zeros, base)
    if layout[ADDS_BASE]:
        for i in range(size):
            negated[i] = -base[i]
    largest = np.uint32(0)
    for expert in range(layout[EXPERTS]):
        first = FIRST_EXPERT + PER_MODEL * expert
        mode = layout[first + MODE]
        # x - 0 is x, and x - (-y) is x + y, signs of zeros included.
        less = base if mode == MINUS_BASE else zeros if mode == AS_STORED else negated
        row = row_of(scratch, expert)
        highest = _read(layout[first + ADDRESS], layout[first + KIND], start, size, less, row)
        largest = max(largest, highest)
    return largest


@inlined
def sum_weighted(scratch: int, experts: int, weights: Floats, size: int, total: Floats) -> None:
    """Multiply all rows by their weights in place, and sum them in their order."""
    for expert in range(experts):
        row, weight = row_of(scratch, expert), weights[expert]
        if expert == 0:
            for i in range(size):
                product = row[i] * weight
                row[i] = product
                total[i] = product
        else:
            for i in range(size):
                product = row[i] * weight
                row[i] = product
                total[i] += product
