"""Weighted sums."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.strips import (
    LARGEST,
    base_of,
    floats,
    integers,
    read_strip,
    sum_weighted,
)


def combine(parts: int, scratch: int, weights: int, relative: int, merged: int) -> int:
    """Combine a piece; 0 if an operand is not finite."""
    layout, factors, base = integers(parts), floats(weights), base_of(scratch)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        total = floats(merged + 4 * start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        sum_weighted(scratch, layout[EXPERTS], factors, size, total)
        if relative:
            for i in range(size):
                total[i] += base[i]
    return int(largest <= LARGEST)
