"""Objectives of a search: functions of one task's predictions that need no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_adapting import entropy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting import Objective, Predictions


def entropy_of(_task: str, _step: int, logits: Tensor) -> Tensor:
    """Return the mean entropy, which AdaMerging minimises."""
    return entropy(logits)


def disagreement_with(teachers: Mapping[str, Predictions], temperature: float = 1.0) -> Objective:
    """Return the distance from the teachers' predictions, by task, softened by the temperature.

    A temperature above 1 softens both predictions, so that classes that a teacher finds unlikely
    count for more. Its square keeps the gradients at the same scale (arXiv:1503.02531).
    """

    def distance(task: str, step: int, logits: Tensor) -> Tensor:
        return teachers[task].disagreement(step, logits / temperature) * temperature**2

    return distance
