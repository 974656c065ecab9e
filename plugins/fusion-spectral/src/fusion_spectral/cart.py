"""CART (arXiv:2412.12153): the average, and the low-rank part of the differences from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import Piece, TensorwiseAlgorithm
from fusion_core.weights import decompose, in_order, is_matrix
from fusion_spectral.config import CartConfig
from fusion_spectral.matrixwise import Matrixwise, mean

if TYPE_CHECKING:
    from torch import Tensor


class Cart(Matrixwise, TensorwiseAlgorithm[CartConfig]):
    """A + scale * sum over experts of (the largest components of W_k - A), A the experts' average.

    Of a matrix, `rank_fraction` of min(m, n) components are kept of each expert, and at least one;
    at full rank the sum is zero. Everything else is averaged. The paper tunes `scale` on validation
    data. Needs no base. Data: none. Cost: an eigendecomposition a matrix and expert, of its smaller
    Gram matrix.
    """

    config_class = CartConfig
    pieces_held, squares = (6.3, 2.5), (6, 0)

    def merge(self, piece: Piece) -> Tensor:
        """Average, and add what stands out of the average."""
        centre = mean(piece.experts)
        if not is_matrix(piece.shape):
            return centre
        kept = max(1, int(self.config.rank_fraction * min(piece.shape)))
        apart = (decompose(row - centre).largest(kept).product() for row in piece.experts)
        return in_order(apart).mul_(self.config.scale).add_(centre)
