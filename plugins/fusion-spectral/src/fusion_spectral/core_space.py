"""Coordinates in bases that the experts share, as in Core Space (arXiv:2509.17786)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import pad

from fusion_core import Coordinates, Piece
from fusion_core.weights import decompose, is_matrix
from fusion_spectral.config import CoreSpaceConfig
from fusion_spectral.matrixwise import Matrixwise, zero_rounding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


#: Singular values below this fraction of the largest one are rounding in fp32: they count as zero.
_ROUNDING = 1e-6


class CoreSpace(Matrixwise, Coordinates[CoreSpaceConfig]):
    """Merge in coordinates of bases that the experts share; for LoRA (arXiv:2509.17786).

    Formula: L' tau_k R for a matrix (m, n). A merge C of these coordinates becomes base + L C R'. L
    are the left singular vectors of all experts' task vectors joined by columns, R the right
    singular vectors of all joined by rows. Coordinates fill the first rows and columns of a matrix
    (m, n), and all other entries are zero. So are an expert's coordinates in a direction in which
    they are below 1e-6 of its norm: these are rounding. Nothing else is lost, so weighted sums stay
    the same: the stage is for merges that treat entries one by one. A density counts all m * n
    entries (`knots` counts only those in the basis). All other tensors stay as they are.
    Options: `bases` (`both`). `left` has no R, as in KnOTS.
    Differences: Core Space takes the axes of the bases from the adapters' factors, which span the
    same spaces. Here the axes are singular vectors of the task vectors.
    Data: none. Cost: eigendecompositions of size m and n per matrix, on the way there and back. For
    adapters their size is the sum of the ranks, and no task vector is formed.
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
        if not is_matrix(piece.shape):
            return piece.task_vectors
        coordinates = self._bases(piece).to_coordinates(piece)
        height, width = coordinates.shape[1:]
        return pad(coordinates, (0, piece.shape[1] - width, 0, piece.shape[0] - height))

    def restore(self, piece: Piece) -> Tensor:
        """Return L C R' for merged coordinates C."""
        if not is_matrix(piece.shape):
            return piece.merged
        return self._bases(piece).restore(piece.merged)

    def _bases(self, piece: Piece) -> _Bases:
        has_right = self.config.bases == "both"
        if piece.factors is not None:
            left = _span(piece.factors)
            right = _span([(right.mT, left.mT) for left, right in piece.factors])
            return _Bases(left, right if has_right else None)
        rows = piece.task_vectors
        by_columns = decompose(torch.cat(list(rows), dim=1))
        left = _orient(by_columns.left)
        if not has_right:
            return _Bases(left, None)
        by_rows = decompose(torch.cat(list(rows), dim=0))
        return _Bases(left, _orient(by_rows.right))


def _span(factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the left singular vectors of products joined by columns, without the products.

    The factors (m, r_k) and (r_k, n) span the same space. The Gram matrix in an orthonormal basis
    of that space has the size of all ranks together, and gives the singular vectors.
    """
    basis, triangle = torch.linalg.qr(torch.cat([left for left, _ in factors], dim=1).double())
    parts = torch.split(triangle, [left.shape[1] for left, _ in factors], dim=1)
    gram = triangle.new_zeros(basis.shape[1], basis.shape[1])
    for part, (_, right) in zip(parts, factors, strict=True):
        wide = right.double()
        gram += part @ (wide @ wide.mT) @ part.mT
    squares, vectors = torch.linalg.eigh(gram)
    largest = squares[-1:].amax() if len(squares) else 0
    is_nonzero = (squares > largest * _ROUNDING**2).flip(0)
    oriented: Tensor = _orient((basis @ vectors.flip(1)).to(factors[0][0])) * is_nonzero
    return oriented


def _orient(basis: Tensor) -> Tensor:
    """Make each column's largest entry positive, whatever the order of the experts."""
    if not basis.shape[1]:
        return basis
    largest = basis.abs().argmax(dim=0, keepdim=True)
    return torch.where(basis.gather(0, largest) < 0, -basis, basis)


class _Bases(NamedTuple):
    """Columns (m, r) and (n, s), orthonormal or zero; without right ones, columns stay."""

    left: Tensor
    right: Tensor | None

    def to_coordinates(self, piece: Piece) -> Tensor:
        """Return L' tau_k R for all experts, and zero where an expert's coordinates are rounding.

        That is a direction, of the left basis or the right one, in which an expert's coordinates
        are below 1e-6 of its norm: their signs would be random.
        """
        coordinates = self._project(piece)
        norms = torch.linalg.matrix_norm(coordinates)
        zero_rounding(coordinates, norms)
        return coordinates if self.right is None else zero_rounding(coordinates, norms, dim=-2)

    def _project(self, piece: Piece) -> Tensor:
        if piece.factors is None:
            coordinates = self.left.mT @ piece.task_vectors
            return coordinates if self.right is None else coordinates @ self.right
        return torch.stack(
            [
                (self.left.mT @ left) @ (right if self.right is None else right @ self.right)
                for left, right in piece.factors
            ]
        )

    def restore(self, merged: Tensor) -> Tensor:
        """Return L C R' for coordinates C in the first rows and columns of `merged`."""
        if self.right is None:
            return self.left @ merged[: self.left.shape[1]]
        coordinates = merged[: self.left.shape[1], : self.right.shape[1]]
        return self.left @ coordinates @ self.right.mT
