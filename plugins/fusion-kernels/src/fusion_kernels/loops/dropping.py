"""Entries kept at random, by the counter-based generator of the engine."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.primitives import LARGEST, ZERO, floats, inlined, integers
from fusion_kernels.loops.strips import OWN, read_strip, row_of, strip_of
from fusion_kernels.loops.sums import add_magnitudes


@inlined
def _uniform(seed: np.uint64, element: int) -> np.float32:
    """Return the random number in [0, 1) of an element."""
    bits = np.uint64(element) * np.uint64(0x9E3779B97F4A7C15) + seed
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(40)
    return np.float32(np.int32(bits)) * np.float32(2.0**-24)


@inlined
def keep_entry(value: np.float32, seed: np.uint64, element: int, limit: np.float32) -> np.float32:
    """Return an entry, which is kept with the probability `limit`, or zero."""
    return value if _uniform(seed, element) < limit else value * ZERO


def keep_at_random(
    parts: int, scratch: int, seeds: int, limits: int, first: int, chosen: int, sums: int
) -> int:
    """Keep the entries of a piece that starts at element `first`; 0 if one is not finite.

    If `sums` is not 0, it receives the experts' sums of magnitudes, then those of kept entries, and
    `chosen` nothing.
    """
    layout, largest = integers(parts), np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for expert in range(layout[EXPERTS]):
            row, limit = row_of(scratch, expert), floats(limits)[expert]
            seed = np.uint64(integers(seeds)[expert])
            target = strip_of(scratch, OWN)
            if not sums:
                target = floats(chosen + 4 * (layout[ELEMENTS] * expert + start))
            for i in range(size):
                target[i] = keep_entry(row[i], seed, first + start + i, limit)
            if sums:
                add_magnitudes(row, size, scratch, sums, expert)
                add_magnitudes(target, size, scratch, sums, layout[EXPERTS] + expert)
    return int(largest <= LARGEST)
