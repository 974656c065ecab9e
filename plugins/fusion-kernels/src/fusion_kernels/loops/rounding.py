"""Round a strip of a merge to the dtype in which it is stored."""

import numpy as np

from fusion_kernels.layout import BF16, FP16, RESULT_KIND
from fusion_kernels.loops.primitives import (
    LARGEST,
    MAGNITUDE,
    SIGN,
    Floats,
    bits_of,
    float_of,
    halves,
    inlined,
    integers,
    magnitude_of,
)

#: Half of the last place of bf16, in the bits of fp32.
_HALF_PLACE = np.uint32(0x8000)
#: The bits in fp32 of the smallest normal number of fp16, and of the smallest that is too large.
_NORMAL, _TOO_LARGE = np.uint32(0x38800000), np.uint32(0x477FF000)
#: In fp32, numbers from this one to its double have the last place of tiny numbers of fp16.
_HALF = np.float32(0.5)


@inlined
def store_result(parts: int, result: Floats, merged: int, start: int, size: int) -> np.uint32:
    """Round a strip of the merge to bf16 or fp16, if it is stored so.

    The engine does not check what is rounded. So it returns bits that exceed `LARGEST` if a number
    is not finite after it, and 0 if the merge is stored in fp32.
    """
    kind = integers(parts)[RESULT_KIND]
    if kind == BF16:
        return _round_to_bf16(result, merged + 2 * start, size)
    if kind == FP16:
        return _round_to_fp16(result, merged + 2 * start, size)
    return np.uint32(0)


@inlined
def _round_to_bf16(result: Floats, target: int, size: int) -> np.uint32:
    largest, stored = np.uint32(0), halves(target)
    for i in range(size):
        bits = bits_of(result[i])
        largest = max(largest, np.uint32(bits & MAGNITUDE))
        is_odd = (bits >> np.uint32(16)) & np.uint32(1)
        stored[i] = np.uint16((bits + (_HALF_PLACE - np.uint32(1)) + is_odd) >> np.uint32(16))
    return np.uint32(largest + _HALF_PLACE)


@inlined
def _round_to_fp16(result: Floats, target: int, size: int) -> np.uint32:
    largest, stored = np.uint32(0), halves(target)
    for i in range(size):
        magnitude = magnitude_of(result[i])
        largest = max(largest, magnitude)
        is_odd = (magnitude >> np.uint32(13)) & np.uint32(1)
        normal = magnitude - (_NORMAL - np.uint32(0x00800000)) + np.uint32(0x0FFF) + is_odd
        tiny = bits_of(np.float32(float_of(magnitude) + _HALF)) - bits_of(_HALF)
        rounded = normal >> np.uint32(13) if magnitude >= _NORMAL else tiny
        sign = (bits_of(result[i]) & SIGN) >> np.uint32(16)
        stored[i] = np.uint16(np.uint32(rounded) | sign)
    return np.uint32(LARGEST + np.uint32(1)) if largest >= _TOO_LARGE else np.uint32(0)
