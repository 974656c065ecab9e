"""Tensors that hold several matrices, or one in another shape, found from headers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.weights.matrices import Slot
    from fusion_core.weights.packing import Layout


@dataclass(frozen=True, slots=True)
class PackedTensors:
    """Similar tensors that are merged matrix by matrix, and the matrices in each of them."""

    #: their name, with `*` for every number in it
    tensors: str
    count: int
    #: the matrices of one tensor, such as "8 matrices of 64 x 32"
    holds: str


def find_holdings(layout: Layout) -> Iterator[PackedTensors]:
    """Yield the tensors that are not merged as stored, grouped by name pattern and content."""
    groups = Counter(
        (star_numbers(name), describe_slots(slots)) for name, slots in layout.slots.items()
    )
    for (pattern, matrices), count in groups.items():
        yield PackedTensors(pattern, count, matrices)


def star_numbers(name: str) -> str:
    """Return a tensor's name with `*` for every part that is a number."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def describe_slots(slots: Sequence[Slot]) -> str:
    """Return the matrices of one tensor in words, such as "8 matrices of 64 x 32"."""
    descriptions = []
    for shape, count in Counter(slot.shape for slot in slots).items():
        one, many = ("vector", "vectors") if len(shape) == 1 else ("matrix", "matrices")
        noun = one if count == 1 else many
        descriptions.append(f"{count} {noun} of {' x '.join(map(str, shape))}")
    return ", ".join(descriptions)
