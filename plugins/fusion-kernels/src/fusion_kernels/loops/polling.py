"""Magnitudes in windows, and the votes of entries trimmed by thresholds in these windows."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, OWN_STRIPS, STRIP
from fusion_kernels.loops.counting import GROUP, end_group, is_any_inside, measure
from fusion_kernels.loops.strips import (
    LARGEST,
    MAGNITUDE,
    OWN,
    ZERO,
    Floats,
    bits_of,
    floats,
    inlined,
    integers,
    read_strip,
    row_of,
    signed,
    strip_of,
    words,
)


@inlined
def _add_above(
    row: Floats, bounds: int, weight: np.float32, size: int, less: int, inside: int, total: Floats
) -> None:
    """Count the magnitudes of a measured strip inside the window, and add those above it.

    Products with the weight are added to `total`, 1 to `inside`. Two loops are faster than one.
    """
    low, high = np.uint32(integers(bounds)[0]), np.uint32(integers(bounds)[1])
    width, offsets, crowd = np.uint32(high - low), words(less), words(inside)
    for i in range(size):
        crowd[i] += np.uint32(offsets[i] <= width)
    for i in range(size):
        magnitude = np.uint32(bits_of(row[i]) & MAGNITUDE)
        total[i] += (row[i] if magnitude > high else ZERO) * weight


@inlined
def _sign(number: np.float32) -> int:
    return int(number > ZERO) - int(number < ZERO)


@inlined
def _vote_of(scratch: int, experts: int, windows: int, weights: Floats, i: int) -> int:
    """Return the vote of an entry whose magnitudes inside windows are kept."""
    total = ZERO
    for expert in range(experts):
        value = row_of(scratch, expert)[i]
        low = np.uint32(integers(windows)[2 * expert])
        is_kept = np.uint32(bits_of(value) & MAGNITUDE) >= low
        total += (value if is_kept else ZERO) * weights[expert]
    return _sign(total)


@inlined
def _begin(inside: int, size: int, total: Floats) -> None:
    crowd = words(inside)
    for i in range(size):
        total[i] = ZERO
        crowd[i] = np.uint32(0)


@inlined
def _sum_signs(total: Floats, size: int) -> int:
    balance = np.int32(0)
    for i in range(size):
        balance += np.int32(total[i] > ZERO) - np.int32(total[i] < ZERO)
    return int(balance)


@inlined
def _less_of(scratch: int, experts: int, expert: int) -> int:
    """Return the address of the strip that holds an expert's magnitudes less its window's end."""
    return scratch + 4 * STRIP * (OWN_STRIPS + experts + expert)


@inlined
def _width_of(windows: int, expert: int) -> np.uint32:
    bounds = integers(windows)
    return np.uint32(bounds[2 * expert + 1] - bounds[2 * expert])


@inlined
def _list_changes(
    scratch: int,
    experts: int,
    windows: int,
    weights: Floats,
    expert: int,
    begin: int,
    listed: int,
    changes: int,
    filled: int,
) -> int:
    """List a group's magnitudes inside an expert's window, and how each may change the vote.

    The change is 0 for an entry with several magnitudes inside windows. Returns how many are now
    listed.
    """
    less, width = words(_less_of(scratch, experts, expert)), _width_of(windows, expert)
    crowd, total = words(scratch + 4 * STRIP * (OWN + 1)), strip_of(scratch, OWN)
    places = words(listed)
    end = filled
    for i in range(begin, begin + GROUP):  # without branches, which no processor could predict
        places[end] = np.uint32(i)
        end += int(less[i] <= width)
    for number in range(filled, end):
        i = int(places[number])
        change = 0
        if crowd[i] == 1:
            change = _vote_of(scratch, experts, windows, weights, i) - _sign(total[i])
        places[number] = less[i]
        signed(changes)[number] = change
    return end


@inlined
def _list_crowded(
    scratch: int, experts: int, size: int, crowded: int, votes: int
) -> tuple[int, int]:
    """List the entries of a strip with several magnitudes inside windows, and take their votes.

    Returns how many were listed, and the votes without theirs.
    """
    crowd, total, rows = (
        words(scratch + 4 * STRIP * (OWN + 1)),
        strip_of(scratch, OWN),
        floats(crowded),
    )
    listed = 0
    for begin in range(0, size, GROUP):
        end = min(begin + GROUP, size)
        most = np.uint32(0)
        for i in range(begin, end):
            most = max(most, crowd[i])
        if most > 1:
            for i in range(begin, end):
                if crowd[i] > 1:
                    votes -= _sign(total[i])
                    for expert in range(experts):
                        rows[listed * experts + expert] = row_of(scratch, expert)[i]
                    listed += 1
    return listed, votes


def poll(
    parts: int,
    scratch: int,
    windows: int,
    weights: int,
    counts: int,
    offsets: int,
    changes: int,
    crowded: int,
) -> int:
    """Count as `counting.count` does, one window per expert, and the votes of entries.

    A magnitude inside a window is trimmed, and `changes` receives, next to its offset, how the vote
    changes if it is kept. Entries with several magnitudes inside windows do not vote: they have no
    changes, and `crowded` receives their task vectors, entry by entry. `counts` ends with the votes
    and the number of crowded entries. Scratch memory has two strips per expert.
    """
    layout, counted, factors = integers(parts), integers(counts), floats(weights)
    experts, room = layout[EXPERTS], layout[ELEMENTS] + 1
    total, inside = strip_of(scratch, OWN), scratch + 4 * STRIP * (OWN + 1)
    votes, crowd_size, largest = 0, 0, np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        _begin(inside, size, total)
        for expert in range(experts):
            less, bounds = _less_of(scratch, experts, expert), windows + 16 * expert
            row, low = row_of(scratch, expert), np.uint32(integers(bounds)[0])
            counted[expert] += measure(row, size, low, words(less))
            _add_above(row, bounds, factors[expert], size, less, inside, total)
        votes += _sum_signs(total, size)
        for expert in range(experts):
            less, width = _less_of(scratch, experts, expert), _width_of(windows, expert)
            listed, noted = offsets + 4 * room * expert, changes + room * expert
            before = counted[experts + expert]
            after = before
            end_group(words(less), size)
            for begin in range(0, size, GROUP):
                if is_any_inside(words(less), begin, width):
                    after = _list_changes(
                        scratch, experts, windows, factors, expert, begin, listed, noted, after
                    )
            counted[expert] -= after - before
            counted[experts + expert] = after
        target = crowded + 4 * experts * crowd_size
        number, votes = _list_crowded(scratch, experts, size, target, votes)
        crowd_size += number
    counted[2 * experts] = votes
    counted[2 * experts + 1] = crowd_size
    return int(largest <= LARGEST)
