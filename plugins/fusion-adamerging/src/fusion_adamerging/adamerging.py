"""AdaMerging (arXiv:2310.02575): coefficients learned without labels, on examples of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.kept import KeptCoefficients
from fusion_adamerging.learned import LearnedCoefficients
from fusion_core.weights import Electing, Trimming

if TYPE_CHECKING:
    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class AdaMerging(KeptCoefficients[AdaMergingConfig, LearnedCoefficients]):
    """base + sum over experts of lambda_kl * task vector, the lambdas learned from unlabeled data.

    A *layer* is one parameter tensor, by its canonical name; coefficients may be finer, one an
    output row, input column or singular component of each matrix.
    """

    config_class = AdaMergingConfig
    learns = LearnedCoefficients

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search (or load) the coefficients; the merge itself stays lazy."""
        if self.config.trim:
            pool = context.transformed(pool, Trimming(self.config.density))
            pool = context.transformed(pool, Electing())
        return super().run(pool, context)
