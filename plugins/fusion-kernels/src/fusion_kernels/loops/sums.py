"""Sums in fp64. `fusion_ties.sums` defines their order."""

import numpy as np

from fusion_kernels.layout import STRIP
from fusion_kernels.loops.primitives import Doubles, Floats, doubles, inlined
from fusion_kernels.loops.strips import OWN, address_of


@inlined
def sum_halves(buffer: Doubles, size: int) -> np.float64:
    """Add the second half of `size` numbers, a power of two, to the first until one is left."""
    half = size // 2
    while half > 0:
        for i in range(half):
            buffer[i] += buffer[half + i]
        half //= 2
    return np.float64(buffer[0])


@inlined
def _sum_strip(buffer: Doubles, size: int) -> np.float64:
    """Sum a strip of `size` numbers, filled up with zeros."""
    for i in range(size, STRIP):
        buffer[i] = 0.0
    return sum_halves(buffer, STRIP)


@inlined
def add_magnitudes(row: Floats, size: int, scratch: int, sums: int, number: int) -> None:
    """Add the magnitudes of a strip to a sum. The second and third own strips are overwritten."""
    buffer = doubles(address_of(scratch, OWN + 1))
    for i in range(size):
        buffer[i] = np.float64(abs(row[i]))
    doubles(sums)[number] += _sum_strip(buffer, size)


@inlined
def add_squares(row: Floats, size: int, scratch: int, sums: int, number: int) -> None:
    """Add the squares of a strip to a sum. The second and third own strips are overwritten."""
    buffer = doubles(address_of(scratch, OWN + 1))
    for i in range(size):
        buffer[i] = np.float64(row[i]) * np.float64(row[i])
    doubles(sums)[number] += _sum_strip(buffer, size)
