"""What numba lacks: memory by its address, the bits of numbers, masks, and reading files.

All of it becomes instructions of the loop that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

#: The bits of the largest finite number. Those of infinity and NaN are larger.
LARGEST = np.uint32(0x7F7FFFFF)
MAGNITUDE = np.uint32(0x7FFFFFFF)
SIGN = np.uint32(0x80000000)
ZERO, ONE = np.float32(0), np.float32(1)
#: The start of a sum that leaves its first term as it is, the sign of a zero included.
NOTHING = np.float32(-0.0)
#: A window holds few of the magnitudes, so many groups of this many have none.
GROUP = 64

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


def _mask_above(typingctx: Any, address: Any, limit: Any) -> Any:  # noqa: ANN401, ARG001
    """Return which of `GROUP` integers of 32 bits are above a limit: a bit each, lowest first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401, ARG001
        integer, group = ir.IntType(32), ir.VectorType(ir.IntType(32), GROUP)
        numbers = builder.load(builder.inttoptr(arguments[0], group.as_pointer()), align=4)
        first = builder.insert_element(ir.Constant(group, None), arguments[1], integer(0))
        limits = builder.shuffle_vector(first, first, ir.Constant(group, None))
        is_above = builder.icmp_unsigned(">", numbers, limits)
        return builder.bitcast(is_above, ir.IntType(GROUP))

    return types.uint64(types.int64, types.uint32), generate


def _first_bit(typingctx: Any, mask: Any) -> Any:  # noqa: ANN401, ARG001
    """Return the position of the lowest bit that is set; one must be."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401, ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def _read_file(
    typingctx: Any,  # noqa: ANN401, ARG001
    function: Any,  # noqa: ANN401, ARG001
    descriptor: Any,  # noqa: ANN401, ARG001
    address: Any,  # noqa: ANN401, ARG001
    size: Any,  # noqa: ANN401, ARG001
    offset: Any,  # noqa: ANN401, ARG001
) -> Any:  # noqa: ANN401
    """Call `pread`, whose address is `function`, and return how many bytes it read, or -1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401, ARG001
        address, integer = ir.IntType(64), ir.IntType(32)
        pread = ir.FunctionType(address, [integer, address, address, address])
        pointer = builder.inttoptr(arguments[0], pread.as_pointer())
        return builder.call(pointer, [builder.trunc(arguments[1], integer), *arguments[2:]])

    return types.int64(*[types.int64] * 5), generate


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
signed_halves: Callable[[int], npt.NDArray[np.int16]] = _pointer_to(types.int16)
integers: Callable[[int], npt.NDArray[np.int64]] = _pointer_to(types.int64)
read_file = cast("Callable[[int, int, int, int, int], int]", intrinsic(_read_file))
mask_above = cast("Callable[[int, np.uint32], np.uint64]", intrinsic(_mask_above))
first_bit = cast("Callable[[np.uint64], int]", intrinsic(_first_bit))
bits_of: Callable[[np.float32], np.uint32] = _reinterpret(types.float32, types.uint32)
float_of: Callable[[np.uint32], np.float32] = _reinterpret(types.uint32, types.float32)
square_root: Callable[[np.float64], np.float64] = _root_of(types.float64)


@inlined
def _widen_bf16(half: np.uint16) -> np.float32:
    return float_of(np.uint32(np.uint32(half) << np.uint32(16)))


@inlined
def _widen_fp16(half: np.int16) -> np.float32:
    bits = np.uint32(np.uint16(half))
    # The exponent and mantissa of fp16, shifted into place, are the number times 2^-112.
    magnitude = float_of(np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)))
    is_special = (bits & np.uint32(0x7C00)) == np.uint32(0x7C00)
    exponent = np.uint32(0x7F800000) if is_special else np.uint32(0)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    return float_of(np.uint32(bits_of(magnitude * np.float32(2.0**112)) | sign | exponent))


@inlined
def _same(number: np.float32) -> np.float32:
    return number


def widen(stored: Any) -> np.float32:  # noqa: ANN401
    """Return a stored number in fp32: its type says how it is stored."""
    raise NotImplementedError(stored)


@overload(widen, strict=False)
def _find_widening(stored: Any) -> Callable[[Any], np.float32]:  # noqa: ANN401 - numba's types
    widenings = {types.uint16: _widen_bf16, types.int16: _widen_fp16, types.float32: _same}
    widening: Any = widenings[stored]
    return lambda stored: widening(stored)  # noqa: PLW0108 - numba has to compile it


@inlined
def magnitude_of(number: np.float32) -> np.uint32:
    """Return the bits of the magnitude, which order as magnitudes do."""
    return np.uint32(bits_of(number) & MAGNITUDE)
