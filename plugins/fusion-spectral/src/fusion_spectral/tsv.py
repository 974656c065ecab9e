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
    """base + scale * (sum of the task vectors that `orthogonalise` makes).

    The same as `[orthogonalise, {name: task-arithmetic, scale: 1.0}]`, and computed by it: a
    matrix's task vectors are cut to rank / experts components each and their bases made orthonormal
    across experts; everything else is averaged. Data: none. Cost: that of `orthogonalise`.
    """

    config_class = ScaleConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        apart = context.transformed(pool, Orthogonalise())
        return context.merged(apart, Linear((self.config.scale,) * len(pool.experts)))
