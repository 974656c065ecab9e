"""Reading of any range from a source that is read in coarser ranges."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fusion_core.weights.source import WeightSource


def read_range(source: WeightSource, name: str, start: int, stop: int) -> torch.Tensor:
    """Read any range of a tensor, also from a source with coarser ranges."""
    if source.cut is Cut.ELEMENT:
        return source.read(name, start, stop)
    return join_ranges(source.ranges(name), (start, stop), partial(source.read, name))


def join_ranges(
    ranges: Iterable[tuple[int, int]],
    span: tuple[int, int],
    read: Callable[[int, int], torch.Tensor],
) -> torch.Tensor:
    """Read a span by reading those consecutive ranges that it touches."""
    start, stop = span
    parts = [
        read(first, last)[max(start - first, 0) : stop - first]
        for first, last in ranges
        if first < stop and last > start
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
