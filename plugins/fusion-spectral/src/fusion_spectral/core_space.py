"""Coordinates in bases that the experts share, as in Core Space (arXiv:2509.17786)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import pad

from fusion_core import Coordinates, Piece
from fusion_core.weights import decompose, is_matrix
from fusion_spectral.config import CoreSpaceConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class CoreSpace(Matrixwise, Coordinates[CoreSpaceConfig]):
    """Turn each task vector of a matrix (m, n) into its coordinates L' tau R, for any merge.

    L are the left singular vectors of all experts' task vectors side by side, R the right ones of
    all below each other (`bases: both`, Core Space), or nothing (`left`, KnOTS). Coordinates stand
    in the first rows and columns of a matrix (m, n), all else is zero; the merge C of them becomes
    base + L C R'. Nothing is lost, so a weighted sum is what it is without: it is for merges that
    treat entries one by one, for LoRA above all. They see zeros outside the bases: a density
    is of all m * n entries (`knots` counts those in the basis). Core Space itself takes the bases
    from the adapters' factors: the same spaces, with other axes. What is not a matrix stays as it
    is. Data: none. Cost: an eigendecomposition of size m, and one of size n, a matrix, there and
    back.
    """

    config_class = CoreSpaceConfig
    otherwise = "left as they are"
    squares = (0, 0)

    @property
    def pieces_held(self) -> tuple[float, float]:
        """Less where there are no right bases."""
        return (8, 9) if self.config.bases == "both" else (8, 6.6)

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Count squares as wide as the experts' smaller sides beside each other."""
        side = min(max(shape), experts * min(shape)) if is_matrix(shape) else 0
        return super().working_memory(shape, experts) + 6 * side**2

    def rows(self, piece: Piece) -> Tensor:
        """Return the coordinates, (experts, m, n)."""
        rows = piece.task_vectors
        if not is_matrix(piece.shape):
            return rows
        coordinates = self._bases(rows).coordinates(rows)
        empty = [have - used for have, used in zip(piece.shape, coordinates.shape[1:], strict=True)]
        return pad(coordinates, (0, empty[1], 0, empty[0]))

    def restore(self, piece: Piece) -> Tensor:
        """Return L C R', for merged coordinates C."""
        if not is_matrix(piece.shape):
            return piece.merged
        return self._bases(piece.task_vectors).restored(piece.merged)

    def _bases(self, rows: Tensor) -> _Bases:
        beside = decompose(torch.cat(list(rows), dim=1))
        left = _oriented(beside.left) * (beside.values > 0)
        if self.config.bases == "left":
            return _Bases(left, None)
        below = decompose(torch.cat(list(rows), dim=0))
        return _Bases(left, _oriented(below.right) * (below.values > 0))


def _oriented(basis: Tensor) -> Tensor:
    """Return columns whose largest entry is positive: the order of experts does not turn them."""
    largest = basis.abs().argmax(dim=0, keepdim=True)
    return torch.where(basis.gather(0, largest) < 0, -basis, basis)


class _Bases(NamedTuple):
    """Orthonormal columns, (m, r) and (n, s), or zero ones; without right ones, columns stay."""

    left: Tensor
    right: Tensor | None

    def coordinates(self, rows: Tensor) -> Tensor:
        """Return L' rows R."""
        found = self.left.mT @ rows
        return found if self.right is None else found @ self.right

    def restored(self, merged: Tensor) -> Tensor:
        """Return L C R', for coordinates C in the first rows and columns of `merged`."""
        if self.right is None:
            return self.left @ merged[: self.left.shape[1]]
        kept = merged[: self.left.shape[1], : self.right.shape[1]]
        return self.left @ kept @ self.right.mT
