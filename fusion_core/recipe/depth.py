"""The depth of a tensor in its model, and values that change with depth.

A layer's tensors have its number in their names: `encoder.layers.7.mlp.weight`. Layers whose names
agree up to the number form one stack, from depth 0 at the first to 1 at the last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NUMBERED = re.compile(r"(?P<stack>.*?)(?:^|\.)(?P<layer>\d+)(?:\.|$)")

#: Names of tensors before the first layer: embeddings of any spelling (but not heads, such as
#: GPT-NeoX's `embed_out`), and norms that say so. mergekit lists them by architecture, to the same
#: effect.
_BEFORE_LAYERS = re.compile(
    r"(?<!un)emb(?!ed_out)|(?:^|\.)shared\.|(?:^|[._])feature_projection\."
    r"|(?:^|[._])(?:w[tp]e|pe|pos|positional|tokens?|patch|conv\d?(?!_(?:norm_)?out)|stem|rotary)(?:[._]|$)"
    r"|(?:^|[._])pre_?la?y|_pre(?:[._]|$)"
)


def depths(names: Iterable[str]) -> Mapping[str, float]:
    """Return the depth of every tensor that belongs to a layer."""
    return depths_of(layers_of(names))


def depths_of(
    stacks: Mapping[str, Mapping[int, Sequence[str]]], span: tuple[int, int] | None = None
) -> Mapping[str, float]:
    """Return the depth of every tensor in the layers that `layers_of` returns.

    With a span of layers, from its first up to its excluded last, only these have a depth, from 0
    to 1 among themselves.
    """
    return {
        name: rank / max(len(chosen) - 1, 1)
        for layers in stacks.values()
        for chosen in [sorted(n for n in layers if span is None or span[0] <= n < span[1])]
        for rank, layer in enumerate(chosen)
        for name in layers[layer]
    }


def is_before_layers(name: str) -> bool:
    """Return whether a tensor in no layer comes before the first one, as embeddings do."""
    return _BEFORE_LAYERS.search(name) is not None


def layers_of(names: Iterable[str]) -> Mapping[str, Mapping[int, Sequence[str]]]:
    """Return the tensors of every layer, by stack and by layer number."""
    stacks: defaultdict[str, dict[int, list[str]]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.match(name):
            stacks[match["stack"]].setdefault(int(match["layer"]), []).append(name)
    return stacks


def renumber_layer(name: str, layer: int) -> str:
    """Replace the layer number in a tensor's name. The tensor must belong to a layer."""
    match = _NUMBERED.match(name)
    assert match is not None  # noqa: S101 - the caller's promise
    return f"{name[: match.start('layer')]}{layer}{name[match.end('layer') :]}"


def interpolate(points: Sequence[float], depth: float) -> float:
    """Interpolate linearly between points at even distances from depth 0 to depth 1."""
    if len(points) == 1:
        return points[0]
    number = min(int(depth * (len(points) - 1)), len(points) - 2)
    left, right = points[number : number + 2]
    share = depth * (len(points) - 1) - number
    between = left + (right - left) * share
    return min(max(between, min(left, right)), max(left, right))  # rounding stays in the range
