"""The masks that a model stores for its tasks, one bit per entry and task.

A packed tensor is uint8 of shape (ceil(entries / 8), tasks): bit i of row j belongs to entry
8 * j + i. The bits of all tasks for a range of entries are adjacent and are computed together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights.source import Cut, TensorInfo, WeightSource, assemble

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The masks, with the names of the model's tensors, and a description of each task.
MASKS = "task_masks.safetensors"
SCALES = "task_masks.json"
_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def describe_packed(infos: Mapping[str, TensorInfo], tasks: int) -> dict[str, TensorInfo]:
    """Describe the packed masks of the floating-point tensors of a model."""
    return {
        name: TensorInfo(name, (-(-info.numel // 8), tasks), torch.uint8)
        for name, info in infos.items()
        if info.dtype.is_floating_point
    }


class PackedMasks(WeightSource):
    """The packed masks of several tasks; a mask covers the non-zero entries of a source.

    `masks` are sources with the model's tensors and shapes, in the order of the tasks.
    """

    def __init__(self, masks: Mapping[str, WeightSource]) -> None:
        self._masks = tuple(masks.values())
        self._model_infos = self._masks[0].infos
        self.infos = describe_packed(self._model_infos, len(self._masks))
        is_elementwise = all(mask.cut is Cut.ELEMENT for mask in self._masks)
        self.cut = Cut.ROW if is_elementwise else Cut.TENSOR

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Pack the bits of some rows."""
        first, last = (8 * position // len(self._masks) for position in (start, stop))
        last = min(last, self._model_infos[name].numel)
        if self.cut is Cut.ROW:
            values = [mask.read(name, first, last) for mask in self._masks]
        else:  # a source that cannot be cut between elements is read whole
            values = [assemble(mask, name) for mask in self._masks]
        rows = [mask_values != 0 for mask_values in values]
        bits = torch.nn.functional.pad(torch.stack(rows), (0, (first - last) % 8))
        octets = bits.view(len(rows), bits.shape[1] // 8, 8)
        packed: torch.Tensor = (octets * _BITS).sum(-1, dtype=torch.uint8)
        return packed.T.reshape(-1)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The masks."""
        return self._masks

    def describe(self) -> str:
        """Return a label."""
        return "task masks"


class TaskMask(WeightSource):
    """One task's mask, unpacked to 1 and 0 in the shapes of the model's tensors."""

    def __init__(self, packed: WeightSource, task: int, infos: Mapping[str, TensorInfo]) -> None:
        """`task` is the number of a packed task; `infos` describes the model's tensors."""
        self._packed, self._task = packed, task
        self.infos = {
            name: TensorInfo(name, infos[name].shape, torch.uint8) for name in packed.infos
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Unpack the bits of a range."""
        _, tasks = self._packed.infos[name].shape
        first, last = start // 8, -(-stop // 8)
        rows = self._packed.read(name, first * tasks, last * tasks).view(-1, tasks)
        bits = (rows[:, self._task, None] & _BITS).ne(0).to(torch.uint8).flatten()
        return bits[start - 8 * first : stop - 8 * first]

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The packed masks."""
        return (self._packed,)

    def describe(self) -> str:
        """Name the task's number and the packed masks."""
        return f"mask {self._task} of {self._packed.describe()}"
