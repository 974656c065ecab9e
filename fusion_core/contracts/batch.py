"""Examples of a task: a tensor or, for models that take several, a mapping of tensors.

What is done with examples without knowing what they are is done here: they are moved, counted, cut,
joined and padded. In a mapping, `attention_mask` says which positions are padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

#: The name in a mapping of inputs: ones, and zeros where there is padding; (examples, length).
MASK = "attention_mask"


class Split(StrEnum):
    """Which examples: UNLABELED for adaptive algorithms, TEST to measure results on."""

    TRAIN = "train"
    UNLABELED = "unlabeled"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task: whatever the task's `logits` takes; no labels on UNLABELED.

    Every tensor's first dimension is the example. In a mapping with an `attention_mask`, of shape
    (examples, length), tensors of that shape and more dimensions have a second one, the position.
    """

    inputs: torch.Tensor | Mapping[str, torch.Tensor]
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.tensors.values())))

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The inputs by name; a tensor alone has an empty one."""
        return {"": self.inputs} if isinstance(self.inputs, torch.Tensor) else self.inputs

    @property
    def mask(self) -> torch.Tensor | None:
        """What is not padding, of shape (examples, length) and true or 1; None without a mask."""
        return self.tensors.get(MASK)

    @property
    def form(self) -> Hashable:
        """What batches have in common that can be joined."""
        return tuple(
            (name, each.dtype, tuple(each.shape[1 + self._is_padded(each) :]))
            for name, each in sorted(self.tensors.items())
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self._with(lambda each: each.to(device))

    def part(self, start: int, stop: int) -> Batch:
        """Return some of the examples."""
        return self._with(lambda each: each[start:stop])

    def rows(self, rows: torch.Tensor) -> Batch:
        """Return the examples of these numbers, shape (examples,)."""
        return self._with(lambda each: each[rows])

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """Return the examples of batches of one form, without labels.

        Shorter ones are padded on the right by zeros, in the mask, too.
        """
        if isinstance(batches[0].inputs, torch.Tensor):
            return Batch(torch.cat([batch.tensors[""] for batch in batches]))
        length = max(0 if batch.mask is None else batch.mask.shape[1] for batch in batches)
        filled = [batch.padded(length) for batch in batches]
        return Batch({name: torch.cat([each[name] for each in filled]) for name in filled[0]})

    def padded(self, length: int) -> dict[str, torch.Tensor]:
        """Return the inputs by name, with zeros on the right up to a length."""
        return {
            name: pad(each, (0, 0) * (each.dim() - 2) + (0, length - each.shape[1]))
            if self._is_padded(each)
            else each
            for name, each in self.tensors.items()
        }

    def _is_padded(self, values: torch.Tensor) -> bool:
        return self.mask is not None and values.shape[:2] == self.mask.shape

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {name: change(each) for name, each in self.tensors.items()}
        inputs = changed[""] if isinstance(self.inputs, torch.Tensor) else changed
        return Batch(inputs, None if self.labels is None else change(self.labels))
