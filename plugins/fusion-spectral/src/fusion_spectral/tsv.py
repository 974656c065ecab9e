"""TSV-M (arXiv:2412.00081): the sum of task vectors after `orthogonalise`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm
from fusion_core.weights import Linear
from fusion_spectral.config import ScaleConfig
from fusion_spectral.matrixwise import ForMatrices
from fusion_spectral.orthogonalise import Orthogonalise

if TYPE_CHECKING:
    from fusion_core import ModelPool, RunContext, WeightSource


class TsvM(ForMatrices, Algorithm[ScaleConfig]):
    """Sum task vectors truncated and made orthogonal across experts (TSV-M, arXiv:2412.00081).

    Formula: base + scale * sum of orthogonalise(tau_k), as
    `[orthogonalise, {name: task-arithmetic, scale: 1.0}]` computes it. All other tensors are
    averaged, and scaled too.
    Options: `scale` (factor; 1.0), `matrices` (`all`). Data: none. Cost: that of `orthogonalise`.
    """

    config_class = ScaleConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        orthogonal = context.transform(pool, Orthogonalise(matrices=self.config.matrices))
        return context.merge(orthogonal, Linear((self.config.scale,) * len(pool.experts)))
