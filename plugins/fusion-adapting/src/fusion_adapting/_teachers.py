"""Predictions of each task's expert, as targets for a merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting._live import build_live
from fusion_adapting._predictions import widened

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusion_adapting._passes import Passes
    from fusion_core import AdaptiveTask, ModelPool, Progress


def ask_teachers(
    pool: ModelPool[Any], passes: Passes, steps: range, progress: Progress
) -> dict[str, dict[int, Tensor]]:
    """Return the experts' logits for all batches of these steps, by task and step.

    Of shape (examples, classes), on the CPU, in fp32 or in fp64 for an expert in fp64. One expert
    is live at a time. Raises `RecipeError` for a task that no expert was fine-tuned for.
    """
    predictions: dict[str, dict[int, Tensor]] = {}
    total = len(passes.tasks) * len(steps)
    with progress.track("ask the teachers", total=total, unit="batches") as advance:

        def predict_all(expert: nn.Module, task: AdaptiveTask) -> dict[int, Tensor]:
            logits: dict[int, Tensor] = {}
            for step in steps:
                batch = passes.batches.of(task, step).to(passes.device)
                logits[step] = widened(task.logits(expert, batch)).cpu()
                advance(1, note=task.name)
            return logits

        for task in passes.tasks:
            expert = pool.expert_of(task.name)
            with torch.no_grad():
                predictions[task.name] = predict_all(build_live(pool, expert, passes.device), task)
    return predictions
