"""CART (arXiv:2412.12153): the average, and the low-rank part of the differences from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, Piece
from fusion_core.weights import Kernel, decompose, in_order, is_matrix
from fusion_spectral.config import CartConfig
from fusion_spectral.matrixwise import ForMatrices, Matrixwise, mean

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource


class Cart(ForMatrices, Algorithm[CartConfig]):
    """A + scale * sum over experts of (the largest components of W_k - A), A the experts' average.

    Of a matrix, `rank_fraction` of the components of W_k - A that are not zero are kept of each
    expert, and at least one: of min(m, n) where experts have full rank, as in the paper. The
    difference of an adapter of rank r from the average of K adapters has about K r. The same
    fraction of min(m, n) would keep most of these, and at full rank the sum is zero. Everything
    else is averaged. The paper tunes `scale` on validation data. Needs no base; with one, the
    differences are those of the task vectors. Data: none. Cost: an eigendecomposition per matrix
    and expert, of its smaller Gram matrix.
    """

    config_class = CartConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        config = self.config
        kernel = _Centred(config.rank_fraction, config.scale, relative=pool.base is not None)
        return context.merged(pool, kernel)


@dataclass(frozen=True)
class _Centred(Matrixwise, Kernel):
    """The average, and what stands out of it; of task vectors where it is `relative`."""

    rank_fraction: float
    scale: float
    relative: bool

    pieces_held, squares = (6.3, 2.5), (6, 0)

    def merge(self, piece: Piece) -> Tensor:
        """Average, and add what stands out of the average."""
        rows = piece.task_vectors if self.relative else piece.experts
        merged = centre = mean(rows)
        if is_matrix(piece.shape):
            merged = in_order(self._largest(row - centre) for row in rows)
            merged = merged.mul_(self.scale).add_(centre)
        return merged.add_(piece.base) if self.relative else merged

    def _largest(self, difference: Tensor) -> Tensor:
        parts = decompose(difference)
        return parts.largest(max(1, int(self.rank_fraction * parts.rank))).product()
