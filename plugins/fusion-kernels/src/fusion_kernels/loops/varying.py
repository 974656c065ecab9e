"""Entries that vary between experts, as in SCE."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.electing import elect
from fusion_kernels.loops.primitives import (
    LARGEST,
    ZERO,
    Floats,
    doubles,
    floats,
    inlined,
    integers,
    square_root,
)
from fusion_kernels.loops.rounding import store_result
from fusion_kernels.loops.strips import (
    OWN,
    address_of,
    base_of,
    read_strip,
    result_of,
    row_of,
    strip_of,
)
from fusion_kernels.loops.sums import add_squares


@inlined
def _deviate(scratch: int, experts: int, size: int, deviation: Floats) -> None:
    """Write each entry's standard deviation over the experts. Overwrites the own strips after."""
    first, count = row_of(scratch, 0), np.float64(experts)
    total, squares = doubles(address_of(scratch, OWN + 1)), doubles(address_of(scratch, OWN + 3))
    for i in range(size):
        total[i] = 0.0
        squares[i] = 0.0
    for expert in range(1, experts):
        row = row_of(scratch, expert)
        for i in range(size):
            difference = np.float64(row[i]) - np.float64(first[i])
            total[i] += difference
            squares[i] += difference * difference
    for i in range(size):
        scaled = square_root(squares[i] * count - total[i] * total[i])
        deviation[i] = np.float32(scaled / count)


@inlined
def _select(scratch: int, experts: int, size: int, threshold: float) -> None:
    """Zero the entries of all experts whose deviation is below a threshold."""
    deviation = strip_of(scratch, OWN)
    if threshold != ZERO:
        _deviate(scratch, experts, size, deviation)
        for expert in range(experts):
            row = row_of(scratch, expert)
            for i in range(size):
                row[i] = row[i] if deviation[i] >= threshold else ZERO


def deviate(parts: int, scratch: int, deviations: int) -> int:
    """Write the deviations of a piece; 0 if an operand is not finite."""
    layout, largest = integers(parts), np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        _deviate(scratch, layout[EXPERTS], size, floats(deviations + 4 * start))
    return int(largest <= LARGEST)


def sum_selected(parts: int, scratch: int, threshold: float, sums: int) -> int:
    """Add up the selected squares of each expert; 0 if an operand is not finite."""
    layout, largest = integers(parts), np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        _select(scratch, layout[EXPERTS], size, threshold)
        for expert in range(layout[EXPERTS]):
            add_squares(row_of(scratch, expert), size, scratch, sums, expert)
    return int(largest <= LARGEST)


def merge(parts: int, scratch: int, threshold: float, shares: int, merged: int) -> int:
    """Merge a piece; 0 if an operand or a result is not finite."""
    layout, base, sign = integers(parts), base_of(scratch), strip_of(scratch, OWN)
    total, divisor = (
        doubles(address_of(scratch, OWN + 1)),
        doubles(address_of(scratch, OWN + 3)),
    )
    experts, largest = layout[EXPERTS], np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        _select(scratch, experts, size, threshold)
        for i in range(size):
            sign[i] = row_of(scratch, 0)[i]
        for expert in range(1, experts):
            row = row_of(scratch, expert)
            for i in range(size):
                sign[i] += row[i]
        elect(sign, 1.0, size, sign)
        for expert in range(experts):
            row, share = row_of(scratch, expert), doubles(shares)[expert]
            for i in range(size):
                agreeing = np.float64(max(row[i] * sign[i], ZERO))
                part = agreeing * share
                weight = (1.0 if agreeing > 0.0 else 0.0) * abs(share)
                total[i] = part if expert == 0 else total[i] + part
                divisor[i] = weight if expert == 0 else divisor[i] + weight
        target = result_of(parts, scratch, merged, start)
        for i in range(size):
            mean = total[i] * np.float64(sign[i]) / (divisor[i] if divisor[i] != 0.0 else 1.0)
            target[i] = np.float32(mean) + base[i]
        largest = max(largest, store_result(parts, target, merged, start, size))
    return int(largest <= LARGEST)
