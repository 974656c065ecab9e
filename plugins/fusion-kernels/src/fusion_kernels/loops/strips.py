"""What all loops share: they go over a piece in strips that stay in the processor's cache.

A loop reads operands by their addresses and widens them to fp32, so one compiled loop serves any
number of experts in any mixture of dtypes. Its arithmetic is IEEE's, in the order in which it is
written: the torch code has the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
from fusion_kernels.loops.primitives import (
    Floats,
    floats,
    halves,
    inlined,
    integers,
    magnitude_of,
    read_file,
    signed,
    signed_halves,
    widen,
)

#: The strips of the scratch memory that every loop has; its own begin at `OWN`.
_BASE, _NEGATED, _ZEROS, _RESULT, OWN = 0, 1, 2, 3, 4


@inlined
def address_of(scratch: int, number: int) -> int:
    """Return the address of a strip of the scratch memory."""
    return scratch + STRIP_BYTES * number


@inlined
def strip_of(scratch: int, number: int) -> Floats:
    """Return a strip of the scratch memory."""
    return floats(address_of(scratch, number))


@inlined
def base_of(scratch: int) -> Floats:
    """Return the strip that `read_strip` fills with the base."""
    return strip_of(scratch, _BASE)


@inlined
def row_of(scratch: int, expert: int) -> Floats:
    """Return the strip that `read_strip` fills with an expert or its task vector."""
    return strip_of(scratch, OWN_STRIPS + expert)


@inlined
def _over(loop: Any, address: int, kind: int, start: int, rest: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Call a loop on a model's stored numbers from `start` on, and on the rest."""
    if kind == FP32:
        return loop(floats(address + 4 * start), *rest)
    if kind == BF16:
        return loop(halves(address + 2 * start), *rest)
    return loop(signed_halves(address + 2 * start), *rest)


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
        largest = max(largest, magnitude_of(value))
    return largest


@inlined
def _read_chunks(parts: int, scratch: int, start: int) -> None:
    """Read the next numbers of models that are in files.

    What cannot be read becomes NaN: so the piece is left to torch, whose reader raises the error.
    """
    layout = integers(parts)
    buffers = address_of(scratch, OWN_STRIPS + layout[EXPERTS])
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
