"""RegMean (arXiv:2212.09849): linear layers by least squares over their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adapting import moments
from fusion_core import Algorithm, RunContext, WeightSource
from fusion_regmean.config import RegMeanConfig
from fusion_regmean.experts import mean_of, over, tasks_of, tracked, weights_of
from fusion_regmean.layered import ForLayers
from fusion_regmean.least_squares import LeastSquares, moment_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting import Moments
    from fusion_core import ModelPool


class LayerSums:
    """The least squares of linear layers by tensor name, as experts are added to them."""

    def __init__(self, config: RegMeanConfig) -> None:
        self._config = config
        self._layers: dict[str, LeastSquares] = {}

    def add(self, weights: WeightSource, found: Mapping[str, Moments]) -> None:
        """Add an expert's weights, and what its layers are given."""
        shrunk = {"off_diagonal": self._config.off_diagonal, "ridge": self._config.ridge}
        for name, each in found.items():
            weight = weights.tensor(name)
            if name not in self._layers:
                self._layers[name] = LeastSquares(weight, each.dim)
            self._layers[name].add(weight, moment_of(each, **shrunk))

    def solve(self) -> dict[str, Tensor]:
        """Return the layers' weights; the sums are gone then."""
        return {name: self._layers.pop(name).solve(name) for name in [*self._layers]}


class RegMean(ForLayers, Algorithm[RegMeanConfig]):
    """W = (sum of W_k G_k) (sum of G_k)^-1 for linear layers, the mean of the experts for the rest.

    G_k is the second moment E[x x^T] of what expert k's layer is given on unlabeled examples of its
    own task, entries beside the diagonal multiplied by `off_diagonal` (0.9 in the paper, 0.1 for
    T5). Of an expert whose layer is never called, nothing is taken. Differs from the paper, as
    FusionBench does, in taking the mean over positions and not the sum: a task with longer inputs
    weighs no more. `ridge`, which neither has, adds a share of the identity to every G_k.

    Data: `samples` unlabeled examples a task. Memory: for every linear layer the two sums in fp64,
    and the moments of one expert. Cost: a pass of the examples through each expert, a product a
    layer and expert, and a Cholesky factor a layer, in fp64 on the CPU. A run that is resumed
    gathers and solves anew.
    """

    config_class = RegMeanConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Gather the moments, and solve; what is not a linear layer stays lazy."""
        sums = LayerSums(self.config)
        gathered = moments(
            pool,
            tasks_of(context),
            samples=self.config.samples,
            seed=context.seed,
            device=context.device,
        )
        for expert, found in tracked("gather moments", gathered, pool, context):
            sums.add(weights_of(pool, pool.experts[expert], context), found)
            del found  # else they stay until the next expert's are there
        solved = sums.solve()
        self.say_what_is_left(solved, pool, context)
        return over(mean_of(pool), solved, pool, context)
