"""Masks that a model has beside it for each of its tasks: one bit an entry and task.

A packed tensor is uint8 of shape (ceil(entries / 8), tasks): bit i of row j belongs to entry
8 * j + i. So the bits of all tasks for a range of entries lie together, and are made together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights.source import Cut, TensorInfo, WeightSource, assemble

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The masks, by the names of the model's tensors, and what is known of each task.
MASKS = "task_masks.safetensors"
SCALES = "task_masks.json"
_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


class PackedMasks(WeightSource):
    """The masks of several tasks, packed; what is not zero in a source is in its mask.

    `masks` are sources with the model's tensors and shapes, in the order of the tasks.
    """

    def __init__(self, masks: Mapping[str, WeightSource]) -> None:
        self._masks = tuple(masks.values())
        self._whole = self._masks[0].infos
        self.infos = {
            name: TensorInfo(name, (-(-info.numel // 8), len(self._masks)), torch.uint8)
            for name, info in self._whole.items()
            if info.dtype.is_floating_point
        }
        is_fine = all(mask.cut is Cut.ELEMENT for mask in self._masks)
        self.cut = Cut.ROW if is_fine else Cut.TENSOR

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Pack the bits of some rows."""
        first, last = (8 * each // len(self._masks) for each in (start, stop))
        last = min(last, self._whole[name].numel)
        rows = [self._values(mask, name, first, last) != 0 for mask in self._masks]
        bits = torch.nn.functional.pad(torch.stack(rows), (0, (first - last) % 8))
        octets = bits.view(len(rows), bits.shape[1] // 8, 8)
        packed: torch.Tensor = (octets * _BITS).sum(-1, dtype=torch.uint8)
        return packed.T.reshape(-1)

    def _values(self, mask: WeightSource, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range; of what cannot be cut between elements, all."""
        return mask.read(name, start, stop) if self.cut is Cut.ROW else assemble(mask, name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The masks."""
        return self._masks

    def describe(self) -> str:
        """Say what it is."""
        return "task masks"


class TaskMask(WeightSource):
    """One task's mask, unpacked: 1 and 0 in the shapes of the model's tensors."""

    def __init__(self, packed: WeightSource, task: int, infos: Mapping[str, TensorInfo]) -> None:
        """`task` counts the packed tasks; `infos` describes the model's tensors."""
        self._packed, self._task = packed, task
        self.infos = {n: TensorInfo(n, infos[n].shape, torch.uint8) for n in packed.infos}

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
        """Say what it is."""
        return f"mask {self._task} of {self._packed.describe()}"
