"""Means on the sphere: the Karcher mean of directions, and Multi-SLERP, its starting point."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, RunContext, expert_weights
from fusion_linear.config import KarcherConfig, MultiSlerpConfig
from fusion_linear.gram import GramCombination, norms_and_cosines
from fusion_linear.shares import expert_shares

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource

#: A weighted mean of unit vectors shorter than this has no direction.
_CANCELLED = 1e-8


class MultiSlerp(Algorithm[MultiSlerpConfig]):
    """Give the weighted mean direction of the experts the weighted mean of their norms.

    Formula: base + sum of w_k |x_k| * m / |m|, with m = sum of w_k x_k / |x_k| and, by default,
    weights divided by their sum. x_k are the task vectors or, in a pool without a base, the
    experts' weights. Each tensor is one vector. Where directions cancel, and in tensors that no
    expert changed, the result is the weighted mean.
    Options: `weights` (one factor per expert; 1 each), `normalize` (divide weights by their sum;
    true).
    Source: mergekit's `multislerp` (no paper). It also takes a step on the tangent space at m,
    which is zero by construction and left out here. From three experts on it raises an error where
    directions cancel.
    Shapes: any. Data: none. Cost: two passes.
    """

    config_class = MultiSlerpConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mean."""
        weights = self.config.weights
        shares = (
            expert_shares(weights, pool.experts)
            if self.config.normalize
            else tuple(expert_weights(weights, [*pool.experts]))
        )
        factors = partial(spherical_mean, shares=shares, iterations=0, tolerance=_CANCELLED)
        return context.merge(pool, GramCombination(factors, relative=pool.base is not None))


class Karcher(Algorithm[KarcherConfig]):
    """Give the Karcher mean of the experts' directions the weighted mean of their norms.

    Formula: sum of w_k |x_k| * u, where the unit vector u minimises the weighted sum of squared
    angles to the experts. From the normalised mean of the directions it takes steps
    u <- Exp_u(sum of w_k Log_u(x_k / |x_k|)). x_k are the experts' weights, and each tensor is one
    vector. A base takes no part.
    Options: `weights` (one factor per expert; 1 each), `iterations` (at most 10 steps), `tolerance`
    (the last step's length in radians; 1e-5).
    Source: arXiv:2603.04972, and mergekit's `karcher`, with weights added and computed on K x K
    numbers per tensor. Differences: only a tensor of zeros has no direction, while mergekit drops
    every tensor whose norm is below `tolerance` (and returns zeros if none is left). Directions
    that cancel give the weighted mean, in mergekit the first expert's.
    Shapes: any. Data: none. Cost: two passes.
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
        return context.merge(pool, GramCombination(factors, relative=False))


def spherical_mean(
    gram: Tensor, *, shares: tuple[float, ...], iterations: int, tolerance: float
) -> Tensor:
    """Return the factors of K vectors in their Karcher mean, of shape (K,).

    `gram` holds their inner products. Points on the sphere are combinations of their directions.
    """
    weights = torch.tensor(shares, dtype=gram.dtype)
    norms, cosines = norms_and_cosines(gram)
    directed = weights * (norms > 0)
    length, total = _length(directed, cosines), directed.sum()
    if length < tolerance or (iterations and total.abs() < _CANCELLED):
        return weights
    point = directed / length
    for _ in range(iterations):
        step = _mean_log(point, cosines, directed / total)
        length = _length(step, cosines)
        if length < tolerance:
            break
        point = length.cos() * point + length.sin() * step / length
        point = point / _length(point, cosines)
    return (weights * norms).sum() * point / norms.where(norms > 0, 1)


def _length(combination: Tensor, cosines: Tensor) -> Tensor:
    """Return the norm of a combination of directions."""
    return (combination @ cosines @ combination).clamp_min(0).sqrt()


def _mean_log(point: Tensor, cosines: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the logarithms of all directions at a point.

    The logarithm of the point itself is zero. That of its opposite is ambiguous and counts as zero.
    """
    cosine = (cosines @ point).clamp(-1, 1)
    sine = (1 - cosine.square()).sqrt()
    scaled = weights * (cosine.acos() / sine).where(sine > _CANCELLED, 0)
    return scaled - (scaled * cosine).sum() * point
