"""Magnitudes in windows."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.primitives import (
    GROUP,
    LARGEST,
    Floats,
    Words,
    first_bit,
    inlined,
    integers,
    magnitude_of,
    mask_above,
    words,
)
from fusion_kernels.loops.strips import OWN, address_of, read_strip, row_of


@inlined
def _list_inside(offsets: int, size: int, width: np.uint32, listed: int, filled: int) -> int:
    """List the offsets of a strip that are at most `width`; return how many are now listed."""
    inside, target = words(offsets), words(listed)
    for i in range(size, -(-size // GROUP) * GROUP):
        inside[i] = np.uint32(0xFFFFFFFF)  # the last group is filled up
    for begin in range(0, size, GROUP):
        waiting = ~mask_above(offsets + 4 * begin, width)
        while waiting != np.uint64(0):
            target[filled] = inside[begin + first_bit(waiting)]
            filled += 1
            waiting &= waiting - np.uint64(1)
    return filled


@inlined
def _count_zeros(offsets: Words, size: int) -> int:
    zeros = np.int32(0)
    for i in range(size):
        zeros = np.int32(zeros + np.int32(offsets[i] == np.uint32(0)))
    return int(zeros)


@inlined
def _measure(row: Floats, size: int, low: np.uint32, offsets: Words) -> int:
    """Write the magnitudes of a strip less `low`; return how many are not smaller."""
    at_least = np.int32(0)
    for i in range(size):
        magnitude = magnitude_of(row[i])
        at_least = np.int32(at_least + np.int32(magnitude >= low))
        offsets[i] = np.uint32(magnitude - low)  # of smaller ones: more than any width
    return int(at_least)


def count(parts: int, scratch: int, searches: int, windows: int, counts: int, offsets: int) -> int:
    """Count magnitudes above each window, and list those inside it, less its lower end.

    Those inside a window of one value are counted and not listed.
    `windows` holds the lowest and highest bits of each search. `counts` receives, per search, how
    many magnitudes lie above, then, per search, how many lie inside. `offsets` has room for all of
    a block per search. Returns 0 if an operand is not finite.
    """
    layout, bounds, counted = integers(parts), integers(windows), integers(counts)
    strip = address_of(scratch, OWN)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for search in range(searches):
            row = row_of(scratch, search % layout[EXPERTS])
            low = np.uint32(bounds[2 * search])
            width = np.uint32(bounds[2 * search + 1] - low)
            at_least = _measure(row, size, low, words(strip))
            before = counted[searches + search]
            listed = offsets + 4 * search * layout[ELEMENTS]
            if width == np.uint32(0):
                after = before + _count_zeros(words(strip), size)
            else:
                after = _list_inside(strip, size, width, listed, before)
            counted[search] += at_least - (after - before)
            counted[searches + search] = after
    return int(largest <= LARGEST)
