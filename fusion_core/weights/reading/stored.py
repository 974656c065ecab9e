"""Where a tensor lies in a file, and which names and shapes a file may claim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights.source import TensorInfo

_LONGEST_NAME = 512
MOST_DIMENSIONS = 8
MOST_ELEMENTS = 2**62


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: in which file of the model, and from which byte on."""

    file: str
    info: TensorInfo
    offset: int


def is_name(name: str) -> bool:
    """Tell whether a tensor may have a name: printable, and 512 bytes long at most."""
    # Surrogates are not printable, so what is can be encoded.
    return name.isprintable() and 0 < len(name.encode("utf-8")) <= _LONGEST_NAME


def is_shape(shape: Sequence[int]) -> bool:
    """Tell whether a tensor may have a shape: few dimensions, of sizes that can be counted."""
    # `True` is an int to Python, not to a file.
    if len(shape) > MOST_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
        return False
    # Zero-sized tensors may still declare dimensions whose product no machine can count.
    return math.prod(size or 1 for size in shape) < MOST_ELEMENTS
