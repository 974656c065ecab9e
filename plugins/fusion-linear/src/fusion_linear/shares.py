"""Weights of experts, divided by their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import expert_weights
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core import ExpertWeights

#: Weights cancel if their sum is smaller than this fraction of the largest one.
_CANCELLED = 1e-8


def expert_shares(
    weights: ExpertWeights | None, experts: Iterable[str], *, hint: str = "Change them."
) -> tuple[float, ...]:
    """Return the option `weights` divided by its sum, in pool order.

    Raises `RecipeError` for weights that cancel, and where `expert_weights` does.
    """
    factors = expert_weights(weights, list(experts))
    total = sum(factors)
    if total == 0 or abs(total) < _CANCELLED * max(map(abs, factors)):
        raise RecipeError(
            f"algorithm.weights sum to {total:g}, which cannot be normalised", hint=hint
        )
    return tuple(factor / total for factor in factors)
