"""The class that a model finds most likely for an example, and how often it is the right one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion_core import Measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: The index that `most_likely` returns for scores with NaN.
UNDEFINED = -1


def most_likely(scores: Tensor) -> Tensor:
    """Return the index of the highest score in the last dimension, or `UNDEFINED` if one is NaN."""
    return scores.argmax(dim=-1).masked_fill(scores.isnan().any(dim=-1), UNDEFINED)


def measure_accuracy(chosen: Sequence[int], expected: Sequence[int]) -> Measured:
    """Return {"accuracy": fraction of examples with the expected class}.

    The outcome of an example is NaN if its class is `UNDEFINED`, and then so is the accuracy.
    """
    outcomes = [
        math.nan if index == UNDEFINED else float(index == right)
        for index, right in zip(chosen, expected, strict=True)
    ]
    return Measured({"accuracy": sum(outcomes) / len(outcomes)}, outcomes)
