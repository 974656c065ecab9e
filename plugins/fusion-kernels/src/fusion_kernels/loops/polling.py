"""Magnitudes in windows, and the votes of entries trimmed by thresholds in these windows."""

from typing import Any

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.primitives import (
    GROUP,
    LARGEST,
    ZERO,
    Floats,
    Words,
    first_bit,
    floats,
    inlined,
    integers,
    magnitude_of,
    mask_above,
    signed,
    widen,
    words,
)
from fusion_kernels.loops.strips import (
    OWN,
    address_of,
    fill,
    over_expert,
    read_base,
    row_of,
    strip_of,
)

#: The strips of the sum of what is above windows, of how many magnitudes are inside of them, and of
#: the sum of what is above or inside.
_TOTAL, _CROWD, _SUM_WITH = OWN, OWN + 1, OWN + 2


@inlined
def _add_above(
    stored: Any,  # noqa: ANN401
    less: Floats,
    size: int,
    low: np.uint32,
    high: np.uint32,
    weight: np.float32,
    row: Floats,
    total: Floats,
    crowd: Words,
    sum_with: Floats,
) -> tuple[int, np.uint32]:
    """Read a row, add its weighted entries above a window, and count those inside by position.

    `sum_with` receives the sum of those above or inside.

    Returns how many magnitudes are not below the window, and the bits of the largest.
    """
    at_least, largest, width = np.int32(0), np.uint32(0), np.uint32(high - low)
    for i in range(size):
        value = widen(stored[i]) - less[i]
        magnitude = magnitude_of(value)
        row[i] = value
        largest = max(largest, magnitude)
        at_least = np.int32(at_least + np.int32(magnitude >= low))
        crowd[i] += np.uint32(np.uint32(magnitude - low) <= width)
        total[i] += (value if magnitude > high else ZERO) * weight
        sum_with[i] += (value if magnitude >= low else ZERO) * weight
    return int(at_least), largest


@inlined
def _sign(number: np.float32) -> int:
    return int(number > ZERO) - int(number < ZERO)


@inlined
def _sum_signs(total: Floats, size: int) -> int:
    balance = np.int32(0)
    for i in range(size):
        balance = np.int32(balance + np.int32(total[i] > ZERO) - np.int32(total[i] < ZERO))
    return int(balance)


@inlined
def _list_group(
    parts: int,
    scratch: int,
    windows: int,
    counts: int,
    bins: int,
    changes: int,
    crowded: int,
    begin: int,
) -> None:
    """List a group's magnitudes inside windows, and how each may change its entry's vote.

    An entry with several of them does not vote, and is listed as crowded.
    """
    layout, counted, bounds = integers(parts), integers(counts), integers(windows)
    experts, room = layout[EXPERTS], layout[ELEMENTS] + 1
    total, crowd = strip_of(scratch, _TOTAL), words(address_of(scratch, _CROWD))
    sum_with = strip_of(scratch, _SUM_WITH)
    waiting = mask_above(address_of(scratch, _CROWD) + 4 * begin, np.uint32(0))
    while waiting != np.uint64(0):
        i = begin + first_bit(waiting)
        waiting &= waiting - np.uint64(1)
        sign, change = _sign(total[i]), 0
        if crowd[i] == 1:
            change = _sign(sum_with[i]) - sign
        else:
            counted[2 * experts] -= sign
            rows = floats(crowded + 4 * experts * counted[2 * experts + 1])
            for expert in range(experts):
                rows[expert] = row_of(scratch, expert)[i]
            counted[2 * experts + 1] += 1
        for expert in range(experts):  # without branches, which no processor could predict
            low, high = np.uint32(bounds[3 * expert]), np.uint32(bounds[3 * expert + 1])
            offset = np.uint32(magnitude_of(row_of(scratch, expert)[i]) - low)
            listed = room * expert + counted[experts + expert]
            words(bins)[listed] = np.uint32(offset + np.uint32(bounds[3 * expert + 2]))
            signed(changes)[listed] = change
            counted[experts + expert] += int(offset <= np.uint32(high - low))


@inlined
def _close_gaps(bins: int, changes: int, counts: int, experts: int, room: int) -> None:
    """Move the experts' lists, which have memory of `room` entries each, next to each other."""
    listed, changed, end = words(bins), signed(changes), 0
    for expert in range(experts):
        for i in range(integers(counts)[experts + expert]):
            listed[end + i] = listed[room * expert + i]
            changed[end + i] = changed[room * expert + i]
        end += integers(counts)[experts + expert]


def poll(
    parts: int,
    scratch: int,
    windows: int,
    weights: int,
    counts: int,
    bins: int,
    changes: int,
    crowded: int,
) -> int:
    """Count as `counting.count` does, one window per expert, and the votes of entries.

    `windows` holds the lowest and highest bits of each window, and its first bin. A magnitude
    inside a window is trimmed: `bins` receives its bin, and `changes` how the vote changes if it is
    kept. Entries with several magnitudes inside windows do not vote: they have no changes, and
    `crowded` receives their task vectors, entry by entry. `counts` ends with the votes and the
    number of crowded entries.
    """
    layout, counted, bounds = integers(parts), integers(counts), integers(windows)
    factors, experts = floats(weights), layout[EXPERTS]
    total, crowd = strip_of(scratch, _TOTAL), words(address_of(scratch, _CROWD))
    sum_with = strip_of(scratch, _SUM_WITH)
    largest = np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        read_base(parts, scratch, start, size)
        fill(total, ZERO, size)
        fill(sum_with, ZERO, size)
        fill(strip_of(scratch, _CROWD), ZERO, STRIP)
        for expert in range(experts):
            low, high = np.uint32(bounds[3 * expert]), np.uint32(bounds[3 * expert + 1])
            row = row_of(scratch, expert)
            rest = (size, low, high, factors[expert], row, total, crowd, sum_with)
            number, highest = over_expert(_add_above, parts, scratch, expert, start, rest)
            largest = max(largest, highest)
            counted[expert] += number
        counted[2 * experts] += _sum_signs(total, size)
        for begin in range(0, size, GROUP):
            _list_group(parts, scratch, windows, counts, bins, changes, crowded, begin)
    _close_gaps(bins, changes, counts, experts, layout[ELEMENTS] + 1)
    for expert in range(experts):
        counted[expert] -= counted[experts + expert]
    return int(largest <= LARGEST)
