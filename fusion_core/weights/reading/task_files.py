"""The files with which a model stores tensors and adapters of its own for each task.

`task_masks.py` describes the files with masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights.joined import RenamedSource
from fusion_core.weights.reading.task_masks import MASKS, SCALES
from fusion_core.weights.state_dict import StateDictSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from fusion_core.weights.source import WeightSource

#: Keys are task/tensor, with the names of the model's tensors.
TENSORS = "task_tensors.safetensors"
#: Keys are task/down and task/up.
ADAPTERS = "task_adapters.safetensors"
#: The module whose output each task's adapter changes.
ADAPTED = "task_adapters.json"
TASK_FILES = (MASKS, SCALES, TENSORS, ADAPTERS, ADAPTED)


def join_tasks(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> WeightSource:
    """Return tensors by task and name as one source with the keys of the file."""
    return StateDictSource(
        {
            f"{task}/{name}": tensor
            for task, task_tensors in tensors.items()
            for name, tensor in task_tensors.items()
        },
        label="the tensors of tasks",
    )


def list_tasks(stored: WeightSource) -> list[str]:
    """Return the tasks that have tensors."""
    return [*dict.fromkeys(key.rpartition("/")[0] for key in stored.infos)]


def select_task(stored: WeightSource, task: str) -> WeightSource:
    """Return one task's tensors by name."""
    names = {}
    for key in stored.infos:
        key_task, _, name = key.rpartition("/")
        if key_task == task:
            names[name] = key
    return RenamedSource(stored, names)
