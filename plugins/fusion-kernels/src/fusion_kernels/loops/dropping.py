"""Entries kept at random, by the counter-based generator of the engine."""

import numpy as np

from fusion_kernels.layout import ELEMENTS, EXPERTS, STRIP
from fusion_kernels.loops.strips import (
    LARGEST,
    ZERO,
    floats,
    inlined,
    integers,
    read_strip,
    row_of,
)


@inlined
def _uniform(seed: np.uint64, element: int) -> np.float32:
    """Return the random number in [0, 1) of an element."""
    bits = np.uint64(element) * np.uint64(0x9E3779B97F4A7C15) + seed
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(40)
    return np.float32(np.int32(bits)) * np.float32(2.0**-24)


def keep_at_random(
    parts: int, scratch: int, seeds: int, limits: int, first: int, chosen: int
) -> int:
    """Keep the entries of a piece that starts at element `first`; 0 if one is not finite."""
    layout, largest = integers(parts), np.uint32(0)
    for start in range(0, layout[ELEMENTS], STRIP):
        size = min(STRIP, layout[ELEMENTS] - start)
        largest = max(largest, read_strip(parts, scratch, start, size))
        for expert in range(layout[EXPERTS]):
            row, limit = row_of(scratch, expert), floats(limits)[expert]
            seed = np.uint64(integers(seeds)[expert])
            target = floats(chosen + 4 * (layout[ELEMENTS] * expert + start))
            for i in range(size):
                is_kept = _uniform(seed, first + start + i) < limit
                target[i] = row[i] if is_kept else row[i] * ZERO
    return int(largest <= LARGEST)
