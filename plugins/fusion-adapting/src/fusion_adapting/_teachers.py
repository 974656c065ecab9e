"""What each task's own expert predicts, for a merge to agree with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting._live import build_live
from fusion_adapting._predictions import widened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from fusion_adapting._passes import Passes
    from fusion_core import AdaptiveTask, ModelPool, Progress


def ask_teachers(
    pool: ModelPool[Any], passes: Passes, steps: range, progress: Progress
) -> dict[str, dict[int, Tensor]]:
    """Return what the experts predict of all batches that will be passed through in these steps.

    By task and step, of shape (examples, classes), on the CPU, in fp32 or in an fp64 expert's fp64.
    One expert is live at a time.
    Raises `RecipeError` for a task that no expert was fine-tuned for.
    """
    predictions: dict[str, dict[int, Tensor]] = {task.name: {} for task in passes.tasks}
    total = len(passes.tasks) * len(steps)
    with progress.track("ask the teachers", total=total, unit="batches") as advance:
        for task in passes.tasks:
            expert = pool.expert_of(task.name)
            for step, logits in _asked(
                build_live(pool, expert, passes.device), task, passes, steps
            ):
                predictions[task.name][step] = logits
                advance(1, note=task.name)
    return predictions


def _asked(
    expert: nn.Module, task: AdaptiveTask, passes: Passes, steps: range
) -> Iterator[tuple[int, Tensor]]:
    for step in steps:
        with torch.no_grad():
            logits = task.logits(expert, passes.batches.of(task, step).to(passes.device))
        yield step, widened(logits).cpu()
