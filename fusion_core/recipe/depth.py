"""How deep a tensor lies in its model, told by its name, and options that change with that.

A layer's tensors have its number in their names: `encoder.layers.7.mlp.weight`. Layers whose names
agree up to the number are one stack, from depth 0 in the first to 1 in the last.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NUMBERED = re.compile(r"(?P<stack>.*?)(?:^|\.)(?P<layer>\d+)(?:\.|$)")


def depths(names: Iterable[str]) -> Mapping[str, float]:
    """Return the depth of every tensor that belongs to a layer."""
    found = {name: match for name in names if (match := _NUMBERED.match(name))}
    stacks: dict[str, set[int]] = {}
    for match in found.values():
        stacks.setdefault(match["stack"], set()).add(int(match["layer"]))
    places = {stack: _places(sorted(layers)) for stack, layers in stacks.items()}
    return {name: places[match["stack"]][int(match["layer"])] for name, match in found.items()}


def _places(layers: Sequence[int]) -> dict[int, float]:
    last = max(len(layers) - 1, 1)
    return {layer: place / last for place, layer in enumerate(layers)}


def along(points: Sequence[float], depth: float) -> float:
    """Return the value at a depth: points stand at even distances, with straight lines between.

    A whole number where all points are.
    """
    if len(points) == 1:
        return points[0]
    number = min(int(depth * (len(points) - 1)), len(points) - 2)
    left, right = points[number : number + 2]
    share = depth * (len(points) - 1) - number
    between = left + (right - left) * share
    value = min(max(between, min(left, right)), max(left, right))  # rounding leads out of no range
    return round(value) if all(isinstance(each, int) for each in points) else value
