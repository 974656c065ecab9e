"""Inner products of experts or of task vectors. `fusion_linear.gram` defines their order."""

import numpy as np

from fusion_kernels.layout import CHUNK, ELEMENTS, EXPERTS, LANES, STRIP
from fusion_kernels.loops.primitives import LARGEST, Doubles, Floats, doubles, inlined, integers
from fusion_kernels.loops.strips import read_strip, row_of
from fusion_kernels.loops.sums import sum_halves


@inlined
def _add_products(left: Floats, right: Floats, size: int, sums: Doubles) -> None:
    for i in range(size):
        sums[i] += np.float64(left[i]) * np.float64(right[i])


def multiply(parts: int, scratch: int, sums: int, products: int) -> int:
    """Write the inner products of a piece's rows, of shape (K, K); 0 if one is not finite.

    `sums` has room for 8192 zeros per pair of rows. A chunk is read in an order that needs few of
    them at a time.
    """
    layout, largest = integers(parts), np.uint32(0)
    elements, experts = layout[ELEMENTS], layout[EXPERTS]
    for chunk in range(0, elements, CHUNK):
        for lane in range(chunk, min(chunk + LANES, elements), STRIP):
            for start in range(lane, min(chunk + CHUNK, elements), LANES):
                size = min(STRIP, elements - start)
                largest = max(largest, read_strip(parts, scratch, start, size))
                pair = sums + 8 * (lane - chunk)
                for first in range(experts):
                    for second in range(first, experts):
                        left, right = row_of(scratch, first), row_of(scratch, second)
                        _add_products(left, right, size, doubles(pair))
                        pair += 8 * LANES
    pair = sums
    for first in range(experts):
        for second in range(first, experts):
            product = sum_halves(doubles(pair), LANES)
            doubles(products)[first * experts + second] = product
            doubles(products)[second * experts + first] = product
            pair += 8 * LANES
    return int(largest <= LARGEST)
