"""Published methods that are a transform and a sum: DARE, DELLA, Model Breadcrumbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm
from fusion_ties.combining import combined
from fusion_ties.config import BreadcrumbsConfig, DareConfig, DellaConfig
from fusion_ties.dropping import Drop, MagPrune
from fusion_ties.transforms import Band

if TYPE_CHECKING:
    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class Dare(Algorithm[DareConfig]):
    """base + scale * sum of w * task vector, after entries were dropped by chance (2311.03099).

    `Drop` and a sum: with its defaults the bytes of `[drop, task-arithmetic]`. With `elect: ties`
    the entries count that have the sign of the weighted sum, and `normalize` divides by the weights
    of those; entries that cancel exactly are positive. mergekit's `dare_linear` and `dare_ties` are
    this with `rescale: l1` and `scale: 1.0`, but for the random numbers. Shapes: any. No data.
    """

    config_class = DareConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        drop = Drop(density=self.config.density, rescale=self.config.rescale)
        return combined(pool, drop, self.config, context, normalize=self.config.normalize)


class Della(Algorithm[DellaConfig]):
    """base + scale * mean of what agrees in sign, after MagPrune (DELLA, arXiv:2406.11617).

    `MagPrune`, then as `Dare`. The defaults are the paper's: every kept entry divided by its own
    probability, signs elected, what agrees averaged. mergekit's `della` is this with `rescale: l1`,
    its `della_linear` with `elect: none` and `normalize: false` as well, but for the random numbers
    and for tensors that are neither vector nor matrix. Shapes: any; cut by rows. No data.
    """

    config_class = DellaConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        options = self.config.model_dump(include={"density", "epsilon", "rescale"})
        prune = MagPrune(**options)
        return combined(pool, prune, self.config, context, normalize=self.config.normalize)


class Breadcrumbs(Algorithm[BreadcrumbsConfig]):
    """base + scale * sum of w * task vector, both tails dropped (Model Breadcrumbs, 2312.06795).

    `Band` and a sum; with `elect: ties` the sum of the entries that have the sign of the weighted
    sum. mergekit's `breadcrumbs` and `breadcrumbs_ties` are this with `scale: 1.0`; it keeps
    floor(density * n) entries, none of a small tensor. Shapes: any. No data.
    """

    config_class = BreadcrumbsConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        band = Band(density=self.config.density, gamma=self.config.gamma)
        return combined(pool, band, self.config, context)
