"""Entries kept at random, with a probability that depends on the rank in a row, as in DELLA."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.dropping import keep_entry
from fusion_kernels.loops.primitives import (
    LARGEST,
    ZERO,
    Floats,
    floats,
    inlined,
    integers,
    magnitude_of,
)
from fusion_kernels.loops.strips import read_strip, row_of
from fusion_kernels.loops.sums import add_magnitudes

#: Sorting goes digit by digit. A number has the bits of a magnitude above those of its index.
_DIGITS, _DIGIT_BITS = 256, 8
_LOWEST_DIGIT, _END = 32, 64
_INDEX = 0xFFFFFFFF


@inlined
def _digit_of(number: int, shift: int) -> int:
    return (number >> shift) & (_DIGITS - 1)


@inlined
def _sort_by_digit(source: int, target: int, length: int, shift: int, counters: int) -> bool:
    """Sort numbers by one digit and keep the order of equal ones; False if all are equal."""
    numbers, sorted_, positions = integers(source), integers(target), integers(counters)
    for digit in range(_DIGITS):
        positions[digit] = 0
    for i in range(length):
        positions[_digit_of(numbers[i], shift)] += 1
    if positions[_digit_of(numbers[0], shift)] == length:
        return False
    position = 0
    for digit in range(_DIGITS):
        count = positions[digit]
        positions[digit] = position
        position += count
    for i in range(length):
        digit = _digit_of(numbers[i], shift)
        sorted_[positions[digit]] = numbers[i]
        positions[digit] += 1
    return True


@inlined
def _sort_by_magnitude(row: Floats, length: int, memory: int) -> int:
    """Return the address of a row's indices in the order of their magnitudes, smallest first.

    Each has the bits of its magnitude above it. `memory` has room for two numbers per entry, and
    for counters.
    """
    source, target, counters = memory, memory + 8 * length, memory + 16 * length
    numbers = integers(source)
    for i in range(length):
        numbers[i] = (np.int64(magnitude_of(row[i])) << _LOWEST_DIGIT) | i
    for shift in range(_LOWEST_DIGIT, _END, _DIGIT_BITS):
        if _sort_by_digit(source, target, length, shift, counters):
            source, target = target, source
    return source


@inlined
def _prune_row(
    row: Floats,
    length: int,
    probabilities: Floats,
    seed: np.uint64,
    first: int,
    divides: int,
    memory: int,
) -> None:
    """Keep the entries of a row that begins at element `first` of the tensor, in place."""
    order = integers(_sort_by_magnitude(row, length, memory))
    for rank in range(length):
        i, limit = order[rank] & _INDEX, probabilities[rank]
        value = keep_entry(row[i], seed, first + i, limit)
        row[i] = value / limit if divides and limit > ZERO else value


def keep_by_rank(
    parts: int,
    scratch: int,
    length: int,
    probabilities: int,
    seeds: int,
    first: int,
    divides: int,
    chosen: int,
    memory: int,
    sums: int,
) -> int:
    """Keep the entries of a piece of rows of `length`; 0 if one is not finite.

    `probabilities` has one number per expert and rank, the smallest magnitude first. If `divides`,
    kept entries are divided by theirs. The piece starts at element `first`. If `sums` is not 0, it
    receives the experts' sums of magnitudes, then those of kept entries.
    """
    layout, largest = integers(parts), np.uint32(0)
    elements, experts = layout[ELEMENTS], layout[EXPERTS]
    for start in range(0, elements, STRIP):
        size = min(STRIP, elements - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for expert in range(experts):
            row, target = row_of(scratch, expert), floats(chosen + 4 * (elements * expert + start))
            for i in range(size):
                target[i] = row[i]
            if sums:
                add_magnitudes(row, size, scratch, sums, expert)
    for expert in range(experts):
        table = floats(probabilities + 4 * length * expert)
        seed = np.uint64(integers(seeds)[expert])
        for number in range(elements // length):
            start = number * length
            row = floats(chosen + 4 * (elements * expert + start))
            _prune_row(row, length, table, seed, first + start, divides, memory)
        if sums:
            for start in range(0, elements, STRIP):
                row = floats(chosen + 4 * (elements * expert + start))
                size = min(STRIP, elements - start)
                add_magnitudes(row, size, scratch, sums, experts + expert)
    return int(largest <= LARGEST)
