"""Signs that entries elect: the majority, the entries that agree, and their mean, as in TIES."""

from typing import Any

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.primitives import (
    LARGEST,
    NOTHING,
    ONE,
    SIGN,
    ZERO,
    Floats,
    bits_of,
    float_of,
    floats,
    inlined,
    integers,
    magnitude_of,
    widen,
)
from fusion_kernels.loops.rounding import store_result
from fusion_kernels.loops.strips import (
    OWN,
    base_of,
    fill,
    over_expert,
    read_base,
    read_strip,
    result_of,
    row_of,
    strip_of,
)

_ONE_BITS = np.uint32(0x3F800000)


@inlined
def _add_trimmed(
    stored: Any,  # noqa: ANN401
    less: Floats,
    size: int,
    threshold: np.float32,
    weight: np.float32,
    factor: np.float32,
    row: Floats,
    total: Floats,
) -> np.uint32:
    """Trim a row, weight and rescale it, and add it; return the bits of the largest entry."""
    largest = np.uint32(0)
    for i in range(size):
        value = widen(stored[i]) - less[i]
        largest = max(largest, magnitude_of(value))
        product = (value if abs(value) >= threshold else ZERO) * weight * factor
        row[i] = product
        total[i] += product
    return largest


@inlined
def _sum_trimmed(
    parts: int,
    scratch: int,
    start: int,
    size: int,
    thresholds: Floats,
    weights: Floats,
    factors: Floats,
    total: Floats,
) -> np.uint32:
    """Read the base, and all rows, trimmed, weighted and rescaled, and their sum.

    Returns the bits of the largest magnitude before.
    """
    read_base(parts, scratch, start, size)
    fill(total, NOTHING, size)
    largest = np.uint32(0)
    for expert in range(integers(parts)[EXPERTS]):
        row, scales = row_of(scratch, expert), (weights[expert], factors[expert])
        rest = (size, thresholds[expert], *scales, row, total)
        largest = max(largest, over_expert(_add_trimmed, parts, scratch, expert, start, rest))
    return largest


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
    factors: int,
    tie: float,
    normalize: int,
    scale: float,
    merged: int,
) -> int:
    """Merge a piece; 0 if an operand or a result is not finite."""
    layout, base = integers(parts), base_of(scratch)
    per_expert = (floats(thresholds), floats(weights), floats(factors))
    total, sign, share = (
        strip_of(scratch, OWN),
        strip_of(scratch, OWN + 1),
        strip_of(scratch, OWN + 2),
    )
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        highest = _sum_trimmed(parts, scratch, start, size, *per_expert, total)
        largest = max(largest, highest)
        elect(total, tie, size, sign)
        fill(total, NOTHING, size)
        fill(share, ZERO, size)
        for expert in range(layout[EXPERTS]):
            row, weight = row_of(scratch, expert), abs(floats(weights)[expert])
            for i in range(size):
                agreeing = max(row[i] * sign[i], ZERO)
                total[i] += agreeing
                share[i] += weight if agreeing > ZERO else ZERO
        target = result_of(parts, scratch, merged, start)
        if normalize:
            for i in range(size):
                value = total[i] * sign[i] / (share[i] if share[i] != ZERO else ONE)
                target[i] = value * scale + base[i]
        else:
            for i in range(size):
                target[i] = total[i] * sign[i] * scale + base[i]
        largest = max(largest, store_result(parts, target, merged, start, size))
    return int(largest <= LARGEST)


def keep(parts: int, scratch: int, weights: int, tie: float, chosen: int) -> int:
    """Keep the agreeing entries of a piece; 0 if an operand is not finite."""
    layout, factors = integers(parts), floats(weights)
    total, sign = strip_of(scratch, OWN), strip_of(scratch, OWN + 1)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        fill(total, NOTHING, size)
        for expert in range(layout[EXPERTS]):
            row, weight = row_of(scratch, expert), factors[expert]
            for i in range(size):
                total[i] += row[i] * weight
        elect(total, tie, size, sign)
        for expert in range(layout[EXPERTS]):
            row, vote = row_of(scratch, expert), ONE if factors[expert] >= ZERO else -ONE
            target = floats(chosen + 4 * (layout[ELEMENTS] * expert + start))
            for i in range(size):
                target[i] = row[i] * (ONE if row[i] * vote * sign[i] > ZERO else ZERO)
    return int(largest <= LARGEST)


def count_votes(
    parts: int, scratch: int, thresholds: int, weights: int, factors: int, votes: int
) -> int:
    """Count the votes of a block; 0 if an operand is not finite."""
    layout, total, counted = integers(parts), strip_of(scratch, OWN), 0
    per_expert = (floats(thresholds), floats(weights), floats(factors))
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        highest = _sum_trimmed(parts, scratch, start, size, *per_expert, total)
        largest = max(largest, highest)
        balance = np.int32(0)
        for i in range(size):
            balance = np.int32(balance + np.int32(total[i] > ZERO) - np.int32(total[i] < ZERO))
        counted += int(balance)
    integers(votes)[0] = counted
    return int(largest <= LARGEST)
