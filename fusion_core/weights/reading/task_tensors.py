"""Tensors that a model has beside it for each of its tasks, to stand in its own ones' places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights.source import RenamedSource, WeightSource
from fusion_core.weights.state_dict import StateDictSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

#: Keys are task/tensor, the tensors by the names of the model's.
TENSORS = "task_tensors.safetensors"


def keyed(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> WeightSource:
    """Return tensors by task and name as they are written."""
    named = {f"{task}/{name}": each for task, own in tensors.items() for name, each in own.items()}
    return StateDictSource(named, label="task tensors")


def tasks_in(stored: WeightSource) -> list[str]:
    """Return the tasks that have tensors."""
    return [*dict.fromkeys(key.rpartition("/")[0] for key in stored.infos)]


def tensors_of(stored: WeightSource, task: str) -> WeightSource:
    """Return one task's tensors, by the names of the model's."""
    keys = {key.rpartition("/"): key for key in stored.infos}
    return RenamedSource(stored, {name: k for (of, _, name), k in keys.items() if of == task})
