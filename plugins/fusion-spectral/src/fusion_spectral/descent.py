"""Adam on one matrix, given the gradient: what methods share that descend without a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


def descend(
    start: Tensor, gradient: Callable[[Tensor], Tensor], *, steps: int, lr: float
) -> Tensor:
    """Return where Adam (betas 0.9 and 0.999, epsilon 1e-8) is after some steps from a start."""
    found = start.clone()
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(found)
        first.lerp_(slope, 1 - _FIRST)
        second.mul_(_SECOND).addcmul_(slope, slope, value=1 - _SECOND)
        spread = (second / (1 - _SECOND**step)).sqrt_().add_(_EPSILON)
        found.addcdiv_(first, spread, value=-lr / (1 - _FIRST**step))
    return found
