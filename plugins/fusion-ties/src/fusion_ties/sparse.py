"""Methods that make task vectors sparse and sum them: DARE, DELLA, Model Breadcrumbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm
from fusion_ties.combining import merge_sparse
from fusion_ties.config import BreadcrumbsConfig, DareConfig, DellaConfig
from fusion_ties.dropping import Drop, MagPrune
from fusion_ties.transforms import Band

if TYPE_CHECKING:
    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class Dare(Algorithm[DareConfig]):
    """Drop entries of task vectors at random, rescale the others, and sum (DARE, 2311.03099).

    Formula: base + scale * sum of w_k * drop(tau_k). The defaults give the bytes of
    `[drop, task-arithmetic]`. With `elect: ties` only entries with the sign of the weighted sum
    count, and `normalize` divides by their weights. Entries that cancel exactly are positive.
    Options: `density` (probability; 0.5), `rescale` (`paper`), `elect` (`none`), `weights` (one
    factor per expert; 1 each), `scale` (factor; 0.3), `normalize` (false).
    Source: arXiv:2311.03099. mergekit's `dare_linear` and `dare_ties` are this method with
    `rescale: l1` and `scale: 1.0`, apart from the random numbers.
    Shapes: any. Data: none. Cost: that of `drop`.
    """

    config_class = DareConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        drop = Drop(density=self.config.density, rescale=self.config.rescale)
        return merge_sparse(pool, drop, self.config, context)


class Della(Algorithm[DellaConfig]):
    """Drop entries at random, small ones more often, and average those that agree in sign.

    Formula: base + scale * mean of the t_k with sign(t_k) = sign(sum of w_j * t_j), where
    t = magprune(tau). The other options work as in `dare`.
    Options: `density` (mean probability; 0.5), `epsilon` (its range; 0.15), `rescale` (`paper`),
    `elect` (`ties`), `weights` (one factor per expert; 1 each), `scale` (factor; 1.0), `normalize`
    (true).
    Source: DELLA, arXiv:2406.11617. mergekit's `della` is this method with `rescale: l1`, its
    `della_linear` also with `elect: none` and `normalize: false`, apart from the random numbers and
    from tensors that are neither vectors nor matrices.
    Shapes: any. Data: none. Cost: that of `magprune`.
    """

    config_class = DellaConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        prune = MagPrune(**self.config.model_dump(include={"density", "epsilon", "rescale"}))
        return merge_sparse(pool, prune, self.config, context)


class Breadcrumbs(Algorithm[BreadcrumbsConfig]):
    """Drop the largest and smallest entries of each task vector, and sum (Model Breadcrumbs).

    Formula: base + scale * sum of w_k * band(tau_k). With `elect: ties` only entries with the sign
    of the weighted sum count.
    Options: `density` (fraction of entries; 0.1), `gamma` (fraction of entries; 0.01), `elect`
    (`none`), `weights` (one factor per expert; 1 each), `scale` (factor; 0.3), `normalize` (false),
    `rescale` (`none`).
    Source: arXiv:2312.06795. mergekit's `breadcrumbs` and `breadcrumbs_ties` are this method with
    `scale: 1.0`, but keep floor(density * n) entries, which may be none of a small tensor.
    Shapes: any. Data: none. Cost: that of `band`.
    """

    config_class = BreadcrumbsConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        band = Band(**self.config.model_dump(include={"density", "gamma", "rescale"}))
        return merge_sparse(pool, band, self.config, context)
