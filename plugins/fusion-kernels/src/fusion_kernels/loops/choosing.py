"""Entries chosen by magnitude."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.primitives import LARGEST, ZERO, floats, integers
from fusion_kernels.loops.rounding import store_result
from fusion_kernels.loops.strips import (
    OWN,
    base_of,
    read_strip,
    result_of,
    row_of,
    strip_of,
)
from fusion_kernels.loops.sums import add_magnitudes


def keep_band(parts: int, scratch: int, lows: int, highs: int, chosen: int, sums: int) -> int:
    """Keep the entries of a piece inside the bands; 0 if an operand is not finite.

    If `sums` is not 0, it receives the experts' sums of magnitudes, then those of kept entries, and
    `chosen` nothing.
    """
    layout, largest = integers(parts), np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for expert in range(layout[EXPERTS]):
            row, low, high = row_of(scratch, expert), floats(lows)[expert], floats(highs)[expert]
            target = strip_of(scratch, OWN)
            if not sums:
                target = floats(chosen + 4 * (layout[ELEMENTS] * expert + start))
            for i in range(size):
                is_inside = (abs(row[i]) >= low) & (abs(row[i]) <= high)
                target[i] = row[i] if is_inside else ZERO
            if sums:
                add_magnitudes(row, size, scratch, sums, expert)
                add_magnitudes(target, size, scratch, sums, layout[EXPERTS] + expert)
    return int(largest <= LARGEST)


def keep_all(parts: int, scratch: int, chosen: int) -> int:
    """Keep all entries of a piece; 0 if an operand is not finite."""
    layout, largest = integers(parts), np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for expert in range(layout[EXPERTS]):
            row = row_of(scratch, expert)
            target = floats(chosen + 4 * (layout[ELEMENTS] * expert + start))
            for i in range(size):
                target[i] = row[i]
    return int(largest <= LARGEST)


def merge_largest(parts: int, scratch: int, scale: float, merged: int) -> int:
    """Merge a piece; 0 if an operand or a result is not finite."""
    layout, base, first = integers(parts), base_of(scratch), row_of(scratch, 0)
    highest, lowest = strip_of(scratch, OWN), strip_of(scratch, OWN + 1)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for i in range(size):
            highest[i] = first[i]
            lowest[i] = first[i]
        for expert in range(1, layout[EXPERTS]):
            row = row_of(scratch, expert)
            for i in range(size):
                highest[i] = max(highest[i], row[i])
                lowest[i] = min(lowest[i], row[i])
        target = result_of(parts, scratch, merged, start)
        for i in range(size):
            chosen = highest[i] if highest[i] >= -lowest[i] else lowest[i]
            target[i] = (chosen + ZERO) * scale + base[i]  # + 0: zero has one sign
        largest = max(largest, store_result(parts, target, merged, start, size))
    return int(largest <= LARGEST)


def sum_masked(
    parts: int, scratch: int, lambdas: int, least: int, scale: float, merged: int
) -> int:
    """Merge a piece; 0 if an operand or a result is not finite."""
    layout, base = integers(parts), base_of(scratch)
    total, masks = strip_of(scratch, OWN), strip_of(scratch, OWN + 1)
    enough = np.float32(least)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for i in range(size):
            total[i] = row_of(scratch, 0)[i]
            masks[i] = ZERO
        for expert in range(1, layout[EXPERTS]):
            row = row_of(scratch, expert)
            for i in range(size):
                total[i] += row[i]
        for expert in range(layout[EXPERTS]):
            row, factor = row_of(scratch, expert), floats(lambdas)[expert]
            for i in range(size):
                others = abs(total[i] - row[i]) * factor
                masks[i] += np.float32(abs(row[i]) >= others)
        target = result_of(parts, scratch, merged, start)
        for i in range(size):
            target[i] = (total[i] if masks[i] >= enough else ZERO) * scale + base[i]
        largest = max(largest, store_result(parts, target, merged, start, size))
    return int(largest <= LARGEST)
