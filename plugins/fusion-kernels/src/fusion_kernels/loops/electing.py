"""Signs that entries elect: the majority, the entries that agree, and their mean, as in TIES."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.strips import (
    LARGEST,
    ONE,
    OWN,
    SIGN,
    ZERO,
    Floats,
    base_of,
    bits_of,
    float_of,
    floats,
    inlined,
    integers,
    read_strip,
    row_of,
    strip_of,
)

_ONE_BITS = np.uint32(0x3F800000)


@inlined
def _sum_trimmed(
    scratch: int, experts: int, thresholds: Floats, weights: Floats, size: int, total: Floats
) -> None:
    """Trim all rows and multiply them by their weights in place, and sum them in their order."""
    for expert in range(experts):
        row, threshold, weight = row_of(scratch, expert), thresholds[expert], weights[expert]
        if expert == 0:
            for i in range(size):
                product = (row[i] if abs(row[i]) >= threshold else ZERO) * weight
                row[i] = product
                total[i] = product
        else:
            for i in range(size):
                product = (row[i] if abs(row[i]) >= threshold else ZERO) * weight
                row[i] = product
                total[i] += product


@inlined
def elect(total: Floats, tie: float, size: int, sign: Floats) -> None:
    """Write the sign of each sum, 1 or -1; where it is zero, that of `tie`, which may be 0.

    The signs may be written over the sums.
    """
    if tie == ZERO:
        for i in range(size):
            sign[i] = np.float32(total[i] > ZERO) - np.float32(total[i] < ZERO)
    elif tie > ZERO:
        for i in range(size):
            sign[i] = float_of(np.uint32((bits_of(total[i]) & SIGN) ^ _ONE_BITS))
    else:  # an exact zero is +0: negate it, and all signs with it
        for i in range(size):
            negated = bits_of(ZERO - total[i])
            sign[i] = float_of(np.uint32((negated & SIGN) ^ (_ONE_BITS | SIGN)))


def merge(
    parts: int,
    scratch: int,
    thresholds: int,
    weights: int,
    tie: float,
    normalize: int,
    scale: float,
    merged: int,
) -> int:
    """Merge a piece; 0 if an operand is not finite."""
    layout, base, factors = integers(parts), base_of(scratch), floats(weights)
    total, sign, share = (
        strip_of(scratch, OWN),
        strip_of(scratch, OWN + 1),
        strip_of(scratch, OWN + 2),
    )
    experts = layout[EXPERTS]
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        _sum_trimmed(scratch, experts, floats(thresholds), factors, size, total)
        elect(total, tie, size, sign)
        for expert in range(experts):
            row, weight = row_of(scratch, expert), factors[expert]
            if expert == 0:
                for i in range(size):
                    agreeing = max(row[i] * sign[i], ZERO)
                    total[i] = agreeing
                    share[i] = ZERO + (weight if agreeing > ZERO else ZERO)
            else:
                for i in range(size):
                    agreeing = max(row[i] * sign[i], ZERO)
                    total[i] += agreeing
                    share[i] += weight if agreeing > ZERO else ZERO
        target = floats(merged + 4 * start)
        if normalize:
            for i in range(size):
                value = total[i] * sign[i] / (share[i] if share[i] != ZERO else ONE)
                target[i] = value * scale + base[i]
        else:
            for i in range(size):
                target[i] = total[i] * sign[i] * scale + base[i]
    return int(largest <= LARGEST)


def keep(parts: int, scratch: int, weights: int, tie: float, chosen: int) -> int:
    """Keep the agreeing entries of a piece; 0 if an operand is not finite."""
    layout, factors = integers(parts), floats(weights)
    total, sign = strip_of(scratch, OWN), strip_of(scratch, OWN + 1)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for expert in range(layout[EXPERTS]):
            row, weight = row_of(scratch, expert), factors[expert]
            if expert == 0:
                for i in range(size):
                    total[i] = row[i] * weight
            else:
                for i in range(size):
                    total[i] += row[i] * weight
        elect(total, tie, size, sign)
        for expert in range(layout[EXPERTS]):
            row, weight = row_of(scratch, expert), factors[expert]
            target = floats(chosen + 4 * (layout[ELEMENTS] * expert + start))
            for i in range(size):
                target[i] = row[i] * (ONE if row[i] * weight * sign[i] > ZERO else ZERO)
    return int(largest <= LARGEST)


def count_votes(parts: int, scratch: int, thresholds: int, weights: int, votes: int) -> int:
    """Count the votes of a block; 0 if an operand is not finite."""
    layout, total, counted = integers(parts), strip_of(scratch, OWN), 0
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        _sum_trimmed(scratch, layout[EXPERTS], floats(thresholds), floats(weights), size, total)
        balance = np.int32(0)
        for i in range(size):
            balance += np.int32(total[i] > ZERO) - np.int32(total[i] < ZERO)
        counted += int(balance)
    integers(votes)[0] = counted
    return int(largest <= LARGEST)
