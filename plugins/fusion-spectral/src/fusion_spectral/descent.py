"""Adam on one matrix, for methods that know the gradient in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.adam import adam

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

#: Fused, a step is one pass: operation by operation, it goes through a matrix seven times.
_ADAM: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "maximize": False,
    "fused": True,
}


def descend(
    start: Tensor, gradient: Callable[[Tensor], Tensor], *, steps: int, lr: float
) -> Tensor:
    """Return the result of Adam (betas 0.9 and 0.999, epsilon 1e-8) after some steps."""
    position, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    step = torch.zeros((), dtype=torch.float32, device=start.device)
    for _ in range(steps):
        slope = gradient(position)
        adam([position], [slope], [first], [second], [], [step], lr=lr, **_ADAM)
    return position
