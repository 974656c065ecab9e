"""Tensors that hold several matrices, or one in another shape, told before any work is done."""

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
class Holding:
    """Tensors of one kind that are merged matrix by matrix, and what each of them holds."""

    #: their name, with `*` for every number in it
    tensors: str
    count: int
    #: such as "8 matrices of 64 x 32"
    holds: str

    def __str__(self) -> str:
        noun = "tensor holds" if self.count == 1 else "tensors, each of which holds"
        return f"{self.tensors}: {self.count} {noun} {self.holds}"


def holdings_of(layout: Layout) -> Iterator[Holding]:
    """Yield the tensors that are not merged as they are stored, those of one kind together."""
    kinds = Counter((_pattern(name), _words_for(slots)) for name, slots in layout.slots.items())
    for (pattern, words), count in kinds.items():
        yield Holding(pattern, count, words)


def _pattern(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _words_for(slots: Sequence[Slot]) -> str:
    shapes = Counter(slot.shape for slot in slots)
    return ", ".join(f"{count} {_noun(shape, count)}" for shape, count in shapes.items())


def _noun(shape: Sequence[int], count: int) -> str:
    if len(shape) == 1:
        return f"{'vector' if count == 1 else 'vectors'} of {shape[0]}"
    return f"{'matrix' if count == 1 else 'matrices'} of {' x '.join(map(str, shape))}"
