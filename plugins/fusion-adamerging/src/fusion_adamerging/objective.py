"""What AdaMerging minimises: functions of one task's predictions that need no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_adapting import disagreement, entropy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting import Objective


def entropy_of(_task: str, _step: int, logits: Tensor) -> Tensor:
    """Return the objective of the paper."""
    return entropy(logits)


def disagreement_with(
    teachers: Mapping[str, Mapping[int, Tensor]], temperature: float = 1.0
) -> Objective:
    """Return the distance from what teachers said: by task and step, (examples, classes).

    A temperature above 1 softens both, so that classes which a teacher finds unlikely count for
    more; its square keeps gradients of the same size (arXiv:1503.02531).
    """

    def distance(task: str, step: int, logits: Tensor) -> Tensor:
        wanted = teachers[task][step].to(logits.device)
        return disagreement(logits / temperature, wanted / temperature) * temperature**2

    return distance
