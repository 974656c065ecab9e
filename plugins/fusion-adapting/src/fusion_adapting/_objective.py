"""Objectives of a search: functions of one task's predictions that need no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_adapting._predictions import entropy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting._passes import Objective
    from fusion_adapting._teachers import Predictions


def entropy_of(_task: str, _step: int, logits: Tensor) -> Tensor:
    """Return the mean entropy, which AdaMerging minimises."""
    return entropy(logits)


def disagreement_with(
    teachers: Mapping[str, Predictions], temperature: float = 1.0, *, standardise: bool = False
) -> Objective:
    """Return the distance from the teachers' predictions, by task, softened by the temperature.

    A temperature above 1 softens both predictions, so that classes that a teacher finds unlikely
    count for more. Its square keeps the gradients at the same scale (arXiv:1503.02531). With
    `standardise`, scores of classes are standardised instead of softened, and keep that factor.
    """
    scores = {task for task, asked in teachers.items() if standardise and asked.are_scores}

    def distance(task: str, step: int, logits: Tensor) -> Tensor:
        teacher = teachers[task]
        if task in scores:
            divergence = teacher.standardised_disagreement(step, logits)
        else:
            divergence = teacher.disagreement(step, logits / temperature)
        return divergence * temperature**2

    return distance
