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
    """Merge in coordinates of bases that the experts share; for LoRA (arXiv:2509.17786).

    Formula: L' tau_k R for a matrix (m, n). A merge C of these coordinates becomes base + L C R'. L
    are the left singular vectors of all experts' task vectors joined by columns, R the right
    singular vectors of all joined by rows. Coordinates fill the first rows and columns of a matrix
    (m, n), and all other entries are zero. Nothing is lost, so weighted sums stay the same: the
    stage is for merges that treat entries one by one. A density counts all m * n entries (`knots`
    counts only those in the basis). All other tensors stay as they are.
    Options: `bases` (`both`). `left` has no R, as in KnOTS.
    Differences: Core Space takes the bases from the adapters' factors, which span the same spaces
    with other axes.
    Data: none. Cost: eigendecompositions of size m and n per matrix, on the way there and back.
    """

    config_class = CoreSpaceConfig
    other_tensors = "left as they are"
    squares = (0, 0)

    @property
    def pieces_held(self) -> tuple[float, float]:
        """Fewer pieces without right bases."""
        return (8, 9) if self.config.bases == "both" else (8, 6.6)

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Add squares as wide as the experts' smaller sides together."""
        side = min(max(shape), experts * min(shape)) if is_matrix(shape) else 0
        return super().working_memory(shape, experts) + 6 * side**2

    def rows(self, piece: Piece) -> Tensor:
        """Return the coordinates, padded with zeros to (experts, m, n)."""
        rows = piece.task_vectors
        if not is_matrix(piece.shape):
            return rows
        coordinates = self._bases(rows).to_coordinates(rows)
        height, width = coordinates.shape[1:]
        return pad(coordinates, (0, piece.shape[1] - width, 0, piece.shape[0] - height))

    def restore(self, piece: Piece) -> Tensor:
        """Return L C R' for merged coordinates C."""
        if not is_matrix(piece.shape):
            return piece.merged
        return self._bases(piece.task_vectors).restore(piece.merged)

    def _bases(self, rows: Tensor) -> _Bases:
        by_columns = decompose(torch.cat(list(rows), dim=1))
        left = _orient(by_columns.left) * (by_columns.values > 0)
        if self.config.bases == "left":
            return _Bases(left, None)
        by_rows = decompose(torch.cat(list(rows), dim=0))
        return _Bases(left, _orient(by_rows.right) * (by_rows.values > 0))


def _orient(basis: Tensor) -> Tensor:
    """Make each column's largest entry positive, whatever the order of the experts."""
    largest = basis.abs().argmax(dim=0, keepdim=True)
    return torch.where(basis.gather(0, largest) < 0, -basis, basis)


class _Bases(NamedTuple):
    """Columns (m, r) and (n, s), orthonormal or zero; without right ones, columns stay."""

    left: Tensor
    right: Tensor | None

    def to_coordinates(self, rows: Tensor) -> Tensor:
        """Return L' rows R."""
        coordinates = self.left.mT @ rows
        return coordinates if self.right is None else coordinates @ self.right

    def restore(self, merged: Tensor) -> Tensor:
        """Return L C R' for coordinates C in the first rows and columns of `merged`."""
        if self.right is None:
            return self.left @ merged[: self.left.shape[1]]
        coordinates = merged[: self.left.shape[1], : self.right.shape[1]]
        return self.left @ coordinates @ self.right.mT
