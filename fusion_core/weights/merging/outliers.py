"""Refuse merged values that lie further from the base than the operands can explain.

A method that divides by a number near zero writes entries of 1e8, which are finite, load everywhere
and break the model. The bound is loose on purpose: no sound method comes near it.
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

#: How many times the largest task-vector entry of its tensor a merged entry may be from the base.
LIMIT = 1000


class OutlierGuard:
    """The bounds of tensors, as far as the pieces read so far have shown them.

    Most pieces stay within the bound of the pieces before them. The guard reads further task
    vectors only if that bound does not suffice, and then all of them. So whether it refuses a merge
    does not depend on the order of the pieces.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self._bounds: dict[str, float] = {}

    def check(self, moved: torch.Tensor, piece: Piece, whole: Iterable[Piece], name: str) -> None:
        """Raise `WeightsError` if an entry of `moved` lies beyond the bound of its tensor.

        `moved` is how far a method moved the values of `piece` from the base. `whole` yields every
        piece that the bound depends on. `name` is the method's. Values that are not finite pass:
        another check reports them.
        """
        distance, tensor = _largest(moved), piece.info.name
        key = tensor if self.bound is Bound.TENSOR else ""
        if not _is_beyond(distance, self._bounds.get(key, 0.0)):
            return
        for known_piece in chain([piece], whole):
            self._bounds[key] = max(self._bounds.get(key, 0.0), _bound(known_piece))
            if not _is_beyond(distance, self._bounds[key]):
                return
        vectors = "its task vectors" if key else "any task vector"
        raise WeightsError(
            f"{name}: the merged tensor {tensor!r} is up to {distance:.3g} away from the base, "
            f"where {LIMIT} times the largest entry of {vectors} is {self._bounds[key]:.3g}",
            hint="Use another method or other options for this tensor, e.g. by `skip`, or set "
            "alignment.outliers to 'allow' to let it through.",
        )


def _largest(values: torch.Tensor) -> float:
    """Return the largest magnitude; 0 if there are no values, NaN if one is NaN."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return max(-low.item(), high.item())


def _is_beyond(distance: float, bound: float) -> bool:
    return math.isfinite(distance) and distance > bound


def _bound(piece: Piece) -> float:
    """Return how far a merge may move a piece; rounding alone moves entries a little.

    A whole model that an algorithm returns, an extra operand, may be rounded to a narrow dtype.
    """
    largest, rounding = _largest(piece.origin), torch.finfo(piece.origin.dtype).eps
    dtypes = (extra.infos[piece.info.name].dtype for extra in piece.operands.extras.values())
    stored = max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=0.0)
    return LIMIT * (_largest(piece.differences) + rounding * largest) + stored * largest
