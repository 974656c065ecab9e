"""Files that a model has beside it for its tasks: tensors in the places of its own, or adapters.

Masks are those of `task_masks.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights.reading.task_masks import MASKS, SCALES
from fusion_core.weights.source import RenamedSource, WeightSource
from fusion_core.weights.state_dict import StateDictSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

#: Keys are task/tensor, the tensors by the names of the model's.
TENSORS = "task_tensors.safetensors"
#: Keys are task/down and task/up; and which module's output each task's adapter changes.
ADAPTERS = "task_adapters.safetensors"
ADAPTED = "task_adapters.json"
TASK_FILES = (MASKS, SCALES, TENSORS, ADAPTERS, ADAPTED)


def keyed(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> WeightSource:
    """Return tensors by task and name as they are written."""
    named = {f"{task}/{name}": each for task, own in tensors.items() for name, each in own.items()}
    return StateDictSource(named, label="what tasks have for themselves")


def tasks_in(stored: WeightSource) -> list[str]:
    """Return the tasks that have tensors."""
    return [*dict.fromkeys(key.rpartition("/")[0] for key in stored.infos)]


def tensors_of(stored: WeightSource, task: str) -> WeightSource:
    """Return one task's tensors by name."""
    parted = {key: key.rpartition("/") for key in stored.infos}
    return RenamedSource(stored, {name: k for k, (of, _, name) in parted.items() if of == task})
