"""ResMerge (arXiv:2606.02252): residuals of leading components, and a correction by these."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Components, decompose, sum_in_order
from fusion_spectral.config import ResMergeConfig
from fusion_spectral.matrixwise import ROUNDING, MatrixwiseMerge, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: Columns that are held in fp64 at once.
_COLUMNS = 2**18


class ResMerge(MatrixwiseMerge[ResMergeConfig]):
    """Merge residuals on the sphere, and correct by leading components; for RL (arXiv:2606.02252).

    Formula: base + scale * (A + head_scale * a * |A| * H / |H|) for a matrix. A task vector is the
    sum of its head H_k, its `rank` largest components, and its residual R_k. Let q be the direction
    of the sum of all R_k / |R_k|, c their mean cosine with q, and m the mean cosine of two of them.
    Then A = c^beta * (mean of |R_k|) * q. With the agreement s = (c + m + 2) / 4 of the experts,
    beta falls from `beta_max` at 0 to `beta_min` at 1. If the residuals agree no better than random
    ones (c <= 1 / sqrt(K)), A is their mean. H is the mean of the heads, and a the mean over all
    pairs of heads of their cosine, or of 0 if it is negative. All other tensors are averaged, and
    scaled too.
    Options: `rank` (components of a head; 1), `head_scale` (rho; 0.2), `beta_min` (0.7), `beta_max`
    (1.0), `scale` (factor; 1.0), `matrices` (`all`).
    Source: arXiv:2606.02252, as in the authors' code. Differences: the code averages embeddings and
    heads of language models (`overrides` with `matrices: none` do it here), and takes `beta_max`
    for matrices outside of attention and feed-forward blocks. Matrices whose task vectors have no
    more than `rank` components have no residual, and are averaged; the code returns the base.
    Data: none. Cost: one eigendecomposition of the smaller Gram matrix per matrix and expert.
    """

    config_class = ResMergeConfig
    pieces_held, squares = (7, 2.8), (5, 0)

    def combine(self, rows: Tensor) -> Tensor:
        """Merge the residuals, and add the correction."""
        heads = [_find_head(row, self.config.rank) for row in rows]
        residuals = rows.clone()
        for residual, head in zip(residuals, heads, strict=True):
            residual.sub_(head.product())
        lengths = torch.linalg.vector_norm(residuals, dim=(1, 2), dtype=torch.float64)
        wholes = torch.linalg.vector_norm(rows, dim=(1, 2), dtype=torch.float64)
        is_rounding = lengths <= ROUNDING * wholes
        if is_rounding.all():
            return mean(rows)
        residuals[is_rounding] = 0
        merged = self._merge_residuals(residuals)
        strength = self.config.head_scale * _agreement(heads) * merged.norm()
        total = sum_in_order(head.product() for head in heads)
        length = total.norm()
        return merged.add_(total.mul_(strength / length)) if length > 0 else merged

    def _merge_residuals(self, residuals: Tensor) -> Tensor:
        """Return A for residuals (experts, m, n), not all of which are zero."""
        experts = len(residuals)
        inner = _inner_products(residuals.flatten(1))
        lengths = inner.diagonal().sqrt()
        factors = torch.where(lengths > 0, 1 / lengths, 0)
        cosines = factors[:, None] * inner * factors
        square = cosines.sum()  # of the norm of the sum of all directions
        if experts == 1 or square <= experts:
            return mean(residuals)
        coherence = square.sqrt() / experts
        pairs = (square - cosines.trace()) / (experts * (experts - 1))
        agreement = (coherence + pairs + 2) / 4
        config = self.config
        beta = config.beta_max - (config.beta_max - config.beta_min) * agreement
        length = coherence**beta * lengths.mean()
        weights = factors * (length / square.sqrt())
        return (weights.to(residuals.dtype) @ residuals.flatten(1)).view(residuals.shape[1:])


def _find_head(row: Tensor, rank: int) -> Components:
    """Return the largest components, in memory of their own: the others are as large as a row."""
    return Components(*(part.clone() for part in decompose(row).largest(rank)))


def _inner_products(rows: Tensor) -> Tensor:
    """Return the inner products of rows (experts, numbers) in fp64: (experts, experts)."""
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in torch.split(rows, _COLUMNS, dim=1):
        wide = block.double()
        products.addmm_(wide, wide.mT)
    return products


def _agreement(heads: Sequence[Components]) -> float:
    """Return the mean over all pairs of heads of their cosine, or of 0 if it is negative."""
    present = [head for head in heads if head.rank]
    cosines = [max(_cosine(one, two), 0.0) for one, two in combinations(present, 2)]
    return sum(cosines) / len(cosines) if cosines else 1.0


def _cosine(one: Components, two: Components) -> float:
    """Return the cosine of the matrices that components add up to."""
    left = (one.left * one.values).mT @ (two.left * two.values)
    product = (left * (one.right.mT @ two.right)).sum()
    return float(product / (one.values.norm() * two.values.norm()))
