"""Experts looked at one after the other, each on examples of its own task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fusion_adapting._live import build_live, merged_parameters
from fusion_adapting._passes import Batches
from fusion_core import AdaptiveTask, Batch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fusion_core import ModelPool, TaskPool

FoundT = TypeVar("FoundT")
#: What finds something of a live model's parameters, by tensor name, on batches of a task.
Look = Callable[["nn.Module", Mapping[str, "nn.Parameter"], AdaptiveTask, Iterable[Batch]], FoundT]


def over_experts(  # noqa: PLR0913 - what is looked for, on which examples, and where
    look: Look[FoundT],
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
) -> Iterator[tuple[str, FoundT]]:
    """Yield every expert's name and what is found of it.

    One expert is live at a time, and gone when what was found is yielded; nothing of that is kept
    here. A loop's variable still holds it while the next expert is looked at: `del` it where that
    matters. Raises `RecipeError` for an expert whose task is not there, before anything is loaded.
    """
    batches = Batches(min(batch_size, samples), seed)
    own = {expert: tasks.adaptive(pool.task_of(expert)) for expert in pool.experts}

    def found(expert: str, task: AdaptiveTask) -> FoundT:
        model = build_live(pool, pool.experts[expert], device)
        return look(model, merged_parameters(pool, model), task, batches.first(task, samples))

    for expert, task in own.items():
        yield expert, found(expert, task)
