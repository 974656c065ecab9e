"""Objectives of a search: functions of one task's predictions that need no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_adapting import disagreement, entropy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting import Objective


def entropy_of(_task: str, _step: int, logits: Tensor) -> Tensor:
    """Return the mean entropy, which AdaMerging minimises."""
    return entropy(logits)


def disagreement_with(
    teachers: Mapping[str, Mapping[int, Tensor]], temperature: float = 1.0
) -> Objective:
    """Return the distance from the teachers' logits: by task and step, shape (examples, classes).

    A temperature above 1 softens both predictions, so that classes that a teacher finds unlikely
    count for more. Its square keeps the gradients at the same scale (arXiv:1503.02531).
    """

    def distance(task: str, step: int, logits: Tensor) -> Tensor:
        teacher = teachers[task][step].to(logits.device)
        return disagreement(logits / temperature, teacher / temperature) * temperature**2

    return distance
