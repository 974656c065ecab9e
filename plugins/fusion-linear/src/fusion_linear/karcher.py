"""Means on the sphere: the Karcher mean of directions, and Multi-SLERP, which is its first step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, RunContext
from fusion_linear.config import KarcherConfig, MultiSlerpConfig
from fusion_linear.gram import GramCombination, norms_and_cosines
from fusion_linear.shares import expert_shares

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource

#: The length of a weighted mean of unit vectors that has no direction.
_CANCELLED = 1e-8


class MultiSlerp(Algorithm[MultiSlerpConfig]):
    """The weighted mean of the experts' directions, with the weighted mean of their norms.

    sum(w_k |x_k|) * m / |m|, with m = sum(w_k x_k / |x_k|) and weights that sum to one; x_k are the
    task vectors, or the experts' weights in a pool without a base. Each tensor is one vector. As
    mergekit's `multislerp`, which also takes a step on the tangent space at m: a sum that is zero
    by construction, left out here. Where directions cancel, and in tensors that no expert changed,
    it is the weighted mean (mergekit raises an error from three experts on). Shapes: any. Data:
    none. Cost: two passes.
    """

    config_class = MultiSlerpConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        shares = expert_shares(self.config.weights, pool.experts)
        factors = partial(spherical_mean, shares=shares, iterations=0, tolerance=_CANCELLED)
        return context.merged(pool, GramCombination(factors, relative=pool.base is not None))


class Karcher(Algorithm[KarcherConfig]):
    """The point of the sphere with the least weighted sum of squared angles to the experts.

    From the normalised mean of the directions, up to `iterations` steps u <- Exp_u(sum(w_k
    Log_u(u_k))), until one is shorter than `tolerance`; then times sum(w_k |x_k|). x_k are the
    experts' weights, each tensor one vector; a base takes no part. As mergekit's `karcher`
    (arXiv:2603.04972) with weights, computed on K x K numbers a tensor. Deliberately different:
    what has no direction is a tensor of zeros, not one of a norm below `tolerance` (mergekit leaves
    it out, and returns zeros if there is nothing else); directions that cancel give the weighted
    mean (mergekit: the first expert's). Shapes: any. Data: none. Cost: two passes.
    """

    config_class = KarcherConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        factors = partial(
            spherical_mean,
            shares=expert_shares(self.config.weights, pool.experts),
            iterations=self.config.iterations,
            tolerance=self.config.tolerance,
        )
        return context.merged(pool, GramCombination(factors, relative=False))


def spherical_mean(
    gram: Tensor, *, shares: tuple[float, ...], iterations: int, tolerance: float
) -> Tensor:
    """Return the factors of K vectors in their Karcher mean, of shape (K,).

    `gram` holds their inner products; points of the sphere are combinations of their directions.
    """
    weights = torch.tensor(shares, dtype=gram.dtype)
    norms, cosines = norms_and_cosines(gram)
    directed = weights * (norms > 0)
    length = _length(directed, cosines)
    if length < tolerance:
        return weights
    point = directed / length
    for _ in range(iterations):
        step = _log_mean(point, cosines, directed / directed.sum())
        length = _length(step, cosines)
        if length < tolerance:
            break
        point = length.cos() * point + length.sin() * step / length
        point = point / _length(point, cosines)
    return (weights * norms).sum() * point / norms.where(norms > 0, 1)


def _length(combination: Tensor, cosines: Tensor) -> Tensor:
    """Return the norm of a combination of directions."""
    return (combination @ cosines @ combination).clamp_min(0).sqrt()


def _log_mean(point: Tensor, cosines: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of what leads from a point to every direction along the sphere.

    Nothing leads to the point itself, and no one way to its opposite.
    """
    cosine = (cosines @ point).clamp(-1, 1)
    sine = (1 - cosine.square()).sqrt()
    scaled = weights * (cosine.acos() / sine).where(sine > _CANCELLED, 0)
    return scaled - (scaled * cosine).sum() * point
