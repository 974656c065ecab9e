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
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fusion_kernels.layout import (
    ADDRESS,
    ADDS_BASE,
    AS_STORED,
    BASE,
    BF16,
    CHUNK,
    DESCRIPTOR,
    ELEMENTS,
    EXPERTS,
    FIRST_EXPERT,
    FP32,
    HAS_BASE,
    KIND,
    MINUS_BASE,
    MODE,
    OFFSET,
    OWN_STRIPS,
    PER_MODEL,
    PREAD,
    RESULT_KIND,
    STRIP_BYTES,
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
#: The start of a sum that leaves its first term as it is, the sign of a zero included.
NOTHING = np.float32(-0.0)
#: A window holds few of the magnitudes, so many groups of this many have none.
GROUP = 64
#: The strips of the scratch memory that every loop has; its own begin at `OWN`.
_BASE, _NEGATED, _ZEROS, _RESULT, OWN = 0, 1, 2, 3, 4
#: Half of the last place of bf16, in the bits of fp32.
_HALF_PLACE = np.uint32(0x8000)

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
_signed_halves: Callable[[int], npt.NDArray[np.int16]] = _pointer_to(types.int16)
integers: Callable[[int], npt.NDArray[np.int64]] = _pointer_to(types.int64)
read_file = cast("Callable[[int, int, int, int, int], int]", intrinsic(_read_file))
mask_above = cast("Callable[[int, np.uint32], np.uint64]", intrinsic(_mask_above))
first_bit = cast("Callable[[np.uint64], int]", intrinsic(_first_bit))
bits_of: Callable[[np.float32], np.uint32] = _reinterpret(types.float32, types.uint32)
float_of: Callable[[np.uint32], np.float32] = _reinterpret(types.uint32, types.float32)
square_root: Callable[[np.float32], np.float32] = _root_of(types.float32)


@inlined
def strip_of(scratch: int, number: int) -> Floats:
    """Return a strip of the scratch memory."""
    return floats(scratch + STRIP_BYTES * number)


@inlined
def base_of(scratch: int) -> Floats:
    """Return the strip that `read_strip` fills with the base."""
    return strip_of(scratch, _BASE)


@inlined
def row_of(scratch: int, expert: int) -> Floats:
    """Return the strip that `read_strip` fills with an expert or its task vector."""
    return strip_of(scratch, OWN_STRIPS + expert)


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
def _over(loop: Any, address: int, kind: int, start: int, rest: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Call a loop on a model's stored numbers from `start` on, and on the rest."""
    if kind == FP32:
        return loop(floats(address + 4 * start), *rest)
    if kind == BF16:
        return loop(halves(address + 2 * start), *rest)
    return loop(_signed_halves(address + 2 * start), *rest)


@inlined
def over_expert(
    loop: Any,  # noqa: ANN401
    parts: int,
    scratch: int,
    expert: int,
    start: int,
    rest: tuple[Any, ...],
) -> Any:  # noqa: ANN401 - what the loop returns
    """Call a loop on an expert's stored numbers, on what to subtract from them, and on the rest.

    The differences are the expert, or its task vector. `read_base` goes first.
    """
    layout, first = integers(parts), FIRST_EXPERT + PER_MODEL * expert
    mode = layout[first + MODE]
    # x - 0 is x, and x - (-y) is x + y, signs of zeros included.
    strip = _BASE if mode == MINUS_BASE else _ZEROS if mode == AS_STORED else _NEGATED
    less = (strip_of(scratch, strip),)
    return _over(loop, layout[first + ADDRESS], layout[first + KIND], start, less + rest)


@inlined
def _widen(stored: Any, size: int, row: Floats) -> None:  # noqa: ANN401
    for i in range(size):
        row[i] = widen(stored[i])


@inlined
def _read(stored: Any, less: Floats, size: int, row: Floats) -> np.uint32:  # noqa: ANN401
    """Write elements less others, and return the bits of the largest magnitude."""
    largest = np.uint32(0)
    for i in range(size):
        value = widen(stored[i]) - less[i]
        row[i] = value
        largest = max(largest, np.uint32(bits_of(value) & MAGNITUDE))
    return largest


@inlined
def _read_chunks(parts: int, scratch: int, start: int) -> None:
    """Read the next numbers of models that are in files.

    What cannot be read becomes NaN: so the piece is left to torch, whose reader raises the error.
    """
    layout = integers(parts)
    buffers = scratch + STRIP_BYTES * (OWN_STRIPS + layout[EXPERTS])
    for model in range(1 - layout[HAS_BASE], layout[EXPERTS] + 1):
        first = BASE + PER_MODEL * model
        if layout[first + DESCRIPTOR] < 0:
            continue
        width = 4 if layout[first + KIND] == FP32 else 2
        address = buffers + 4 * CHUNK * model
        size, done = width * min(CHUNK, layout[ELEMENTS] - start), 0
        position = layout[first + OFFSET] + width * start
        count = 1
        while done < size and count > 0:
            count = read_file(
                layout[PREAD],
                layout[first + DESCRIPTOR],
                address + done,
                size - done,
                position + done,
            )
            done += max(count, 0)
        for i in range(done, size):
            signed(address)[i] = -1
        layout[first + ADDRESS] = address - width * start


@inlined
def read_base(parts: int, scratch: int, start: int, size: int) -> None:
    """Fill `base_of(scratch)` with elements of the base. Loops call it first, strip by strip."""
    layout, base = integers(parts), base_of(scratch)
    if start % CHUNK == 0:
        _read_chunks(parts, scratch, start)
    if layout[HAS_BASE]:
        _over(_widen, layout[BASE + ADDRESS], layout[BASE + KIND], start, (size, base))
    if layout[ADDS_BASE]:
        negated = strip_of(scratch, _NEGATED)
        for i in range(size):
            negated[i] = -base[i]


@inlined
def read_strip(parts: int, scratch: int, start: int, size: int) -> np.uint32:
    """Read `size` elements of the base and of all experts, or their task vectors.

    Fills `base_of(scratch)` and `row_of(scratch, expert)`. Returns the bits of the largest
    magnitude of an expert or task vector: more than `LARGEST` if one is not finite.
    """
    read_base(parts, scratch, start, size)
    largest = np.uint32(0)
    for expert in range(integers(parts)[EXPERTS]):
        row = row_of(scratch, expert)
        largest = max(largest, over_expert(_read, parts, scratch, expert, start, (size, row)))
    return largest


@inlined
def fill(strip: Floats, number: np.float32, size: int) -> None:
    """Fill a strip with one number."""
    for i in range(size):
        strip[i] = number


@inlined
def result_of(parts: int, scratch: int, merged: int, start: int) -> Floats:
    """Return where a loop writes a strip of the merge, for `store_result`."""
    is_single = integers(parts)[RESULT_KIND] == FP32
    return floats(merged + 4 * start) if is_single else strip_of(scratch, _RESULT)


@inlined
def store_result(parts: int, result: Floats, merged: int, start: int, size: int) -> np.uint32:
    """Round a strip of the merge to bf16, if it is stored so.

    Returns the bits of the largest magnitude before, as the engine does not check it then, else 0.
    """
    largest = np.uint32(0)
    if integers(parts)[RESULT_KIND] == FP32:
        return largest
    stored = halves(merged + 2 * start)
    for i in range(size):
        bits = bits_of(result[i])
        largest = max(largest, np.uint32(bits & MAGNITUDE))
        is_odd = (bits >> np.uint32(16)) & np.uint32(1)
        stored[i] = np.uint16((bits + (_HALF_PLACE - np.uint32(1)) + is_odd) >> np.uint32(16))
    return largest
