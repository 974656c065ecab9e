"""CART (arXiv:2412.12153): the average plus the low-rank part of each difference from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, Piece, expert_values
from fusion_core.weights import Kernel, decompose, sum_in_order
from fusion_spectral.config import CartConfig
from fusion_spectral.matrixwise import ForMatrices, Matrixwise, mean

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource


class Cart(ForMatrices, Algorithm[CartConfig]):
    """Add the low-rank part of each expert's difference from the average (arXiv:2412.12153).

    Formula: A + scale * sum of the largest components of W_k - A, with A the experts' average. All
    other tensors are averaged. With a base, the differences are those of the task vectors.
    Options: `rank_fraction` (fraction of the nonzero components of W_k - A, at least one component;
    0.08), `scale` (factor; 1.0). The paper tunes `scale` on validation data.
    Differences: for experts of full rank the fraction is that of min(m, n), as in the paper. For
    adapters of rank r, W_k - A has rank about K r. The same fraction of min(m, n) would keep most
    components, and their sum over the experts is zero at full rank.
    Data: none. Cost: one eigendecomposition of the smaller Gram matrix per matrix and expert.
    """

    config_class = CartConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        config = self.config
        fractions = expert_values(config.rank_fraction, [*pool.experts], "rank_fraction")
        kernel = _CartKernel(fractions, config, relative=pool.base is not None)
        return context.merge(pool, kernel)


@dataclass(frozen=True)
class _CartKernel(Matrixwise, Kernel):
    """CART of the task vectors if `relative`, else of the experts' weights."""

    rank_fractions: tuple[float, ...]
    config: CartConfig
    relative: bool

    pieces_held, squares = (6.3, 2.5), (6, 0)

    def merge(self, piece: Piece) -> Tensor:
        """Add the low-rank differences to the average."""
        rows = piece.task_vectors if self.relative else piece.experts
        merged = centre = mean(rows)
        if self.takes(piece.shape):
            pairs = zip(rows, self.rank_fractions, strict=True)
            merged = sum_in_order(_low_rank(row - centre, fraction) for row, fraction in pairs)
            merged = merged.mul_(self.config.scale).add_(centre)
        return merged.add_(piece.base) if self.relative else merged


def _low_rank(difference: Tensor, fraction: float) -> Tensor:
    parts = decompose(difference)
    return parts.largest(max(1, int(fraction * parts.rank))).product()
