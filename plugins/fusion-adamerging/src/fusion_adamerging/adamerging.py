"""AdaMerging (arXiv:2310.02575): merging coefficients learned from unlabeled examples."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fusion_adamerging.coefficient_merge import CoefficientMerge
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.deviations import LearnableDeviations
from fusion_adamerging.learnable import LearnableCoefficients
from fusion_core import expert_values
from fusion_thresholds import ElectKernel, TrimKernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_adapting import LiveMerge
    from fusion_core import AdaptiveTask, ModelPool, RunContext
    from fusion_core.weights import WeightSource


class AdaMerging(CoefficientMerge[AdaMergingConfig, LearnableCoefficients]):
    """base + sum over experts of lambda_kl * task vector, with lambda learned from unlabeled data.

    A *layer* l is one parameter tensor, identified by its canonical name. Coefficients can be
    finer: one per output row, input column or singular component of each matrix.

    If a transform has scaled the task vectors (`disentangle`), a step of `lr` and the `shrinkage`
    refer to those before, as if the coefficients started at the scale.
    """

    config_class = AdaMergingConfig
    learns = LearnableCoefficients

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search or load the coefficients, and return the lazy merge."""
        if self.config.trim:
            densities = expert_values(self.config.density, [*pool.experts], "density")
            pool = context.transform(pool, TrimKernel(densities))
            pool = context.transform(pool, ElectKernel())
        search = self._for_scale(math.prod(map(_scale_of, context.transforms)))
        return super(AdaMerging, search).run(pool, context)

    def _for_scale(self, scale: float) -> AdaMerging:
        """Return the method for task vectors that a transform has scaled.

        Its steps and its penalty are as large as if the coefficients had this factor instead.
        """
        if scale == 1:
            return self
        lr, shrinkage = self.config.lr / scale, self.config.shrinkage * scale**2
        return type(self)(self.config.model_copy(update={"lr": lr, "shrinkage": shrinkage}))

    def make_learned(
        self,
        pool: ModelPool[Any],
        live: LiveMerge,
        tasks: Sequence[AdaptiveTask],
        context: RunContext,
    ) -> LearnableCoefficients:
        """Return coefficients, or with `shrinkage` deviations from those of whole tensors."""
        has_finer = any(leaf.count > 1 for leaf in live.leaves)
        if not (self.config.shrinkage and has_finer):
            return super().make_learned(pool, live, tasks, context)
        inverse_counts = [1 / count for count in self.examples_by_task(tasks, context).values()]
        penalty = self.config.shrinkage * fmean(inverse_counts)
        experts = list(pool.experts)
        return LearnableDeviations(live, experts, context.device, self.config, penalty)


def _scale_of(transform: Mapping[str, Any]) -> float:
    """Return the factor that a transform's section gives all task vectors, or 1."""
    scale = transform.get("scale")
    return float(scale) if isinstance(scale, int | float) and scale > 0 else 1.0
