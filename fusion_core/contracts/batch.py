"""Examples of a task: one tensor, or a mapping of tensors for models that take several inputs.

Batches are moved, sliced, concatenated and padded here without knowing what the inputs mean. In a
mapping, `attention_mask` marks padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

#: The name of the padding mask in a mapping: 1 for a token, 0 for padding; (examples, length).
ATTENTION_MASK = "attention_mask"
#: The name of the mask of positions whose predictions count, where an example has several.
PREDICTED = "predicted"


class Split(StrEnum):
    """A part of a task's data: adaptive algorithms read UNLABELED, results are measured on TEST."""

    TRAIN = "train"
    UNLABELED = "unlabeled"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task: inputs for the task's `logits`, and labels except on UNLABELED.

    The first dimension of every tensor is the example. If the inputs are a mapping that contains an
    `attention_mask` of shape (examples, length), every tensor whose shape begins with (examples,
    length) is padded along its second dimension. If a task has several predictions per example, an
    input `predicted` of shape (examples, ...) marks them.
    """

    inputs: torch.Tensor | Mapping[str, torch.Tensor]
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.tensors.values())))

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The inputs by name; a single tensor has the empty name."""
        return {"": self.inputs} if isinstance(self.inputs, torch.Tensor) else self.inputs

    @property
    def mask(self) -> torch.Tensor | None:
        """The padding mask of shape (examples, length), 1 or true for tokens; None without one."""
        return self.tensors.get(ATTENTION_MASK)

    def count_predictions(self) -> list[int]:
        """Return the number of predictions of each example: its marked positions, or one."""
        marked = self.tensors.get(PREDICTED)
        return [1] * len(self) if marked is None else marked.flatten(1).sum(dim=1).tolist()

    @property
    def form(self) -> Hashable:
        """The names, dtypes and unpadded shapes of the inputs; equal forms can be concatenated."""
        return tuple(
            (name, tensor.dtype, tuple(tensor.shape[1 + self._is_padded(tensor) :]))
            for name, tensor in sorted(self.tensors.items())
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def part(self, start: int, stop: int) -> Batch:
        """Return the examples from `start` up to, not including, `stop`."""
        return self._map(lambda tensor: tensor[start:stop])

    def rows(self, rows: torch.Tensor) -> Batch:
        """Return the examples at these indices, shape (selected examples,)."""
        return self._map(lambda tensor: tensor[rows])

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """Concatenate batches of one form, without labels.

        Shorter examples and their masks are padded with zeros on the right.
        """
        if isinstance(batches[0].inputs, torch.Tensor):
            return Batch(torch.cat([batch.tensors[""] for batch in batches]))
        length = max(0 if batch.mask is None else batch.mask.shape[1] for batch in batches)
        padded = [batch.padded(length) for batch in batches]
        return Batch({name: torch.cat([inputs[name] for inputs in padded]) for name in padded[0]})

    def padded(self, length: int) -> dict[str, torch.Tensor]:
        """Return the inputs by name, padded with zeros on the right to `length` positions."""
        return {
            name: pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, length - tensor.shape[1]))
            if self._is_padded(tensor)
            else tensor
            for name, tensor in self.tensors.items()
        }

    def _is_padded(self, tensor: torch.Tensor) -> bool:
        return self.mask is not None and tensor.shape[:2] == self.mask.shape

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {name: change(tensor) for name, tensor in self.tensors.items()}
        inputs = changed[""] if isinstance(self.inputs, torch.Tensor) else changed
        return Batch(inputs, None if self.labels is None else change(self.labels))
