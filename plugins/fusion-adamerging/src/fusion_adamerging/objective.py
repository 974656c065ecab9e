"""What AdaMerging minimises: functions of one task's predictions that need no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor

    from fusion_core import ModelPool


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of the predictions: logits of shape (examples, classes) -> scalar."""
    log_probabilities = _log_probabilities(logits)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()


def disagreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL divergence, in nats, of predictions from a teacher's: both (examples, classes).

    Zero where they agree. Source: the self-labeling objective of SyMerge (arXiv:2412.19098).
    """
    wanted = _log_probabilities(teacher)
    return (wanted.exp() * (wanted - _log_probabilities(logits))).sum(dim=-1).mean()


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return them finite: a class that a mask rules out adds nothing, which 0 * inf would not."""
    return logits.log_softmax(dim=-1).clamp_min(torch.finfo(logits.dtype).min)


def teachers(pool: ModelPool[Any], tasks: list[str]) -> Mapping[str, str]:
    """Return each task's own expert; raises `RecipeError` for a task without one."""
    experts: dict[str, str] = {}
    for expert in pool.experts:
        experts.setdefault(pool.task_of(expert), expert)
    missing = [name for name in tasks if name not in experts]
    if missing:
        raise RecipeError(
            f"algorithm.objective = 'teacher': task {missing[0]!r} has no expert of its own",
            hint=f"Name tasks that have one: algorithm.tasks (among {', '.join(experts)}).",
        )
    return {name: experts[name] for name in tasks}
