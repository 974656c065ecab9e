"""Adam on one matrix, for methods that know the gradient in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def descend(
    start: Tensor, gradient: Callable[[Tensor], Tensor], *, steps: int, lr: float
) -> Tensor:
    """Return the result of Adam (betas 0.9 and 0.999, epsilon 1e-8) after some steps."""
    position = start.clone()
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(position)
        first.lerp_(slope, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(slope, slope, value=1 - _BETA2)
        spread = (second / (1 - _BETA2**step)).sqrt_().add_(_EPSILON)
        position.addcdiv_(first, spread, value=-lr / (1 - _BETA1**step))
    return position
