"""Refuse merged values that lie further from the base than the operands can explain.

A method that divides by something that is nearly zero writes entries of 1e8 which are finite, load
everywhere and break the model. The bound is loose on purpose: no sound method comes near it.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import WeightsError
from fusion_core.weights.merging.piece import Bound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core.weights.merging.piece import Piece

#: How many times the largest task-vector entry of its tensor a merged entry may be away.
LIMIT = 1000


class OutlierGuard:
    """The bounds of tensors, as far as their pieces have shown them.

    Most pieces stay within the bound of the pieces before them, so task vectors are looked at again
    only where that does not suffice. Whether a merge is refused therefore does not depend on the
    order of the pieces.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self._bounds: dict[str, float] = {}

    def check(self, moved: torch.Tensor, piece: Piece, whole: Iterable[Piece], name: str) -> None:
        """Raise `WeightsError` if an entry of `moved` lies beyond the bound of its tensor.

        `moved` is what a method makes of the task vectors of `piece`, `whole` yields every piece
        that the bound depends on, and `name` is the method's. Values that are not finite are not
        judged here.
        """
        distance, tensor = largest(moved), piece.info.name
        key = tensor if self.bound is Bound.TENSOR else ""
        if not _is_beyond(distance, self._bounds.get(key, 0.0)):
            return
        for seen in chain([piece], whole):
            self._bounds[key] = max(self._bounds.get(key, 0.0), _bound(seen))
            if not _is_beyond(distance, self._bounds[key]):
                return
        vectors = "its task vectors" if key else "any task vector"
        raise WeightsError(
            f"{name}: the merged tensor {tensor!r} is up to {distance:.3g} away from "
            f"the base, where {LIMIT} times the largest entry of {vectors} is "
            f"{self._bounds[key]:.3g}",
            hint="Use another method or other options for this tensor, e.g. by `skip`, or set "
            "alignment.outliers to 'allow' to let it through.",
        )


def largest(values: torch.Tensor) -> float:
    """Return the largest magnitude among values; 0 of none, NaN if one is NaN."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return max(-low.item(), high.item())


def _is_beyond(distance: float, bound: float) -> bool:
    return math.isfinite(distance) and distance > bound


def _bound(piece: Piece) -> float:
    """Return how far a merge of a piece may be away: rounding alone moves entries a little."""
    rounding = torch.finfo(piece.origin.dtype).eps * largest(piece.origin)
    return LIMIT * (largest(piece.differences) + rounding)
