"""Interpolation between the nearest of the same points, weighted by inverse distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Elements of the largest intermediate result of a batch: 128 MB in fp32.
_ELEMENTS = 2**25
#: The least distance: a target that equals a point gets nearly all its weight from there.
_LEAST = 1e-6


@dataclass(frozen=True)
class Neighbours:
    """The `k` nearest points of each target, with weights that sum to 1 (Shepard, 1968).

    `points` has the shape (points, width), in fp32 or fp64. Distances are Euclidean.
    """

    points: Tensor
    k: int

    @property
    def batch_size(self) -> int:
        """The number of targets whose intermediate results stay within the limit of memory."""
        count, width = self.points.shape
        return max(1, _ELEMENTS // (count + self.k * width))

    def __call__(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen points and their weights, each of shape (targets, k).

        `targets` has the shape (targets, width) and the dtype of the points.
        """
        squares = self.points.square().sum(1)
        scores = torch.addmm(squares, targets, self.points.T, alpha=-2)
        chosen = scores.topk(self.k, dim=1, largest=False).indices
        # The scores lose digits where a target is close to a point, so the distances come anew.
        distances = (self.points[chosen] - targets[:, None]).double().norm(dim=2)
        weights = 1 / distances.clamp(min=_LEAST)
        return chosen, weights / weights.sum(1, keepdim=True)
