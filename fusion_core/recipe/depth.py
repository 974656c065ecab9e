"""How deep a tensor lies in its model, told by its name, and options that change with that.

A layer's tensors have its number in their names: `encoder.layers.7.mlp.weight`. Layers whose names
agree up to the number are one stack, from depth 0 in the first to 1 in the last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NUMBERED = re.compile(r"(?P<stack>.*?)(?:^|\.)(?P<layer>\d+)(?:\.|$)")


def depths(names: Iterable[str]) -> Mapping[str, float]:
    """Return the depth of every tensor that belongs to a layer."""
    return {
        name: place
        for layers in layers_of(names).values()
        for layer, place in _places(sorted(layers)).items()
        for name in layers[layer]
    }


def layers_of(names: Iterable[str]) -> Mapping[str, Mapping[int, Sequence[str]]]:
    """Return the tensors of every layer, by its stack and by its number there."""
    found: defaultdict[str, dict[int, list[str]]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.match(name):
            found[match["stack"]].setdefault(int(match["layer"]), []).append(name)
    return found


def renumbered(name: str, layer: int) -> str:
    """Return the name that a layer's tensor has in the layer of another number."""
    match = _NUMBERED.match(name)
    assert match is not None  # noqa: S101 - it belongs to a layer
    return f"{name[: match.start('layer')]}{layer}{name[match.end('layer') :]}"


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
    return round(value) if all(isinstance(point, int) for point in points) else value
