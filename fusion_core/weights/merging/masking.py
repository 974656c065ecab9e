"""The weights of one task, of a model that is stored with masks of its tasks (`task_masks.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.aligning.alignment import AlignedSource
from fusion_core.weights.joined import RenamedSource
from fusion_core.weights.merging.kernels import Kernel
from fusion_core.weights.merging.merged_source import MergedSource
from fusion_core.weights.merging.piece import Operands
from fusion_core.weights.reading.task_masks import TaskMask

if TYPE_CHECKING:
    import torch

    from fusion_core.weights.merging.piece import Piece
    from fusion_core.weights.source import WeightSource

_MASK = "mask"


@dataclass(frozen=True)
class Masked(Kernel):
    """base + scale * mask * (model - base)."""

    scale: float

    def merge(self, piece: Piece) -> torch.Tensor:
        """Mask one piece."""
        masked = piece.extra(_MASK) * piece.task_vectors[0]  # noqa: S610 - not Django's
        return masked.mul_(self.scale).add_(piece.base)


def task_weights(
    model: WeightSource, base: WeightSource, packed: WeightSource, task: int, scale: float
) -> WeightSource:
    """Return the lazy weights of one task, in fp32: base + scale * mask * (model - base).

    `task` is the index of the task in the packed masks. Tensors without a mask are the model's.
    """
    names = {name: name for name in packed.infos}
    operands = Operands(
        RenamedSource(base, names),
        {model.describe(): RenamedSource(model, names)},
        extras={_MASK: TaskMask(packed, task, model.infos)},
    )
    return AlignedSource(MergedSource(Masked(scale), operands), model)
