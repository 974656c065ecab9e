"""Weighted sums."""

from typing import Any

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.primitives import (
    LARGEST,
    NOTHING,
    ONE,
    Floats,
    floats,
    inlined,
    integers,
    magnitude_of,
    widen,
)
from fusion_kernels.loops.rounding import store_result
from fusion_kernels.loops.strips import (
    base_of,
    fill,
    over_expert,
    read_base,
    result_of,
)


@inlined
def _add(
    stored: Any,  # noqa: ANN401
    less: Floats,
    size: int,
    weight: np.float32,
    total: Floats,
) -> np.uint32:
    """Add weighted elements to a sum, and return the bits of the largest magnitude."""
    largest = np.uint32(0)
    for i in range(size):
        value = widen(stored[i]) - less[i]
        largest = max(largest, magnitude_of(value))
        total[i] += value * weight
    return largest


def combine(
    parts: int, scratch: int, weights: int, relative: int, divisor: float, merged: int
) -> int:
    """Combine a piece, and divide by `divisor`; 0 if an operand or a result is not finite."""
    layout, factors, base = integers(parts), floats(weights), base_of(scratch)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        total = result_of(parts, scratch, merged, start)
        read_base(parts, scratch, start, size)
        fill(total, NOTHING, size)
        for expert in range(layout[EXPERTS]):
            highest = over_expert(
                _add, parts, scratch, expert, start, (size, factors[expert], total)
            )
            largest = max(largest, highest)
        if relative:
            for i in range(size):
                total[i] += base[i]
        if divisor != ONE:
            for i in range(size):
                total[i] /= divisor
        largest = max(largest, store_result(parts, total, merged, start, size))
    return int(largest <= LARGEST)
