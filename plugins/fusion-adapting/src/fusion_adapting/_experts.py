"""Measurements of experts, one after the other, each on examples of its own task."""

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

ResultT = TypeVar("ResultT")
#: Measures a live model's parameters, given by tensor name, on batches of a task.
Measure = Callable[
    ["nn.Module", Mapping[str, "nn.Parameter"], AdaptiveTask, Iterable[Batch]], ResultT
]


def measure_experts(  # noqa: PLR0913 - what to measure, on which examples, and where
    measure: Measure[ResultT],
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
) -> Iterator[tuple[str, ResultT]]:
    """Yield every expert's name and its result of `measure`.

    One expert is live at a time, and released before its result is yielded. The iterator keeps no
    result, but the loop variable of the caller does while the next expert is measured: `del` it if
    memory is short. Raises `RecipeError` for an expert without a task, before loading any model.
    """
    batches = Batches(min(batch_size, samples), seed)
    task_of = {expert: tasks.adaptive(pool.task_of(expert)) for expert in pool.experts}

    def measure_one(expert: str, task: AdaptiveTask) -> ResultT:
        model = build_live(pool, pool.experts[expert], device)
        return measure(model, merged_parameters(pool, model), task, batches.first(task, samples))

    for expert, task in task_of.items():
        yield expert, measure_one(expert, task)
