"""RegMean (arXiv:2212.09849): linear layers by least squares over their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adapting import moments
from fusion_core import Algorithm, RunContext, WeightSource
from fusion_regmean.config import RegMeanConfig
from fusion_regmean.layer_method import ForLayers
from fusion_regmean.least_squares import LeastSquares, moment_of
from fusion_regmean.sources import mean_of, merge_solved, tasks_of, track_experts, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_adapting import Moments
    from fusion_core import ModelPool
    from fusion_regmean.sources import LayerTensors


class LayerSums:
    """The least squares of linear layers, by tensor name."""

    def __init__(self, config: RegMeanConfig) -> None:
        self._config = config
        self._layers: dict[str, LeastSquares] = {}

    def add(self, weights: LayerTensors, layer_moments: Mapping[str, Moments]) -> None:
        """Add an expert's weights, and the moments of its layers' inputs."""
        shrinking = {"off_diagonal": self._config.off_diagonal, "ridge": self._config.ridge}
        for name, layer in layer_moments.items():
            if not layer.total.any():  # as if the layer was not called
                continue
            weight = weights.tensor(name)
            if name not in self._layers:
                self._layers[name] = LeastSquares(weight, layer.dim)
            self._layers[name].add(weight, moment_of(layer, **shrinking))

    def solve(self) -> dict[str, Tensor]:
        """Return the weights of layers with nonzero inputs, and free the sums."""
        ridge = self._config.ridge
        return {name: self._layers.pop(name).solve(name, ridge) for name in [*self._layers]}


class RegMean(ForLayers, Algorithm[RegMeanConfig]):
    """Solve linear layers by least squares over their inputs on unlabeled data (arXiv:2212.09849).

    Formula: W = (sum of W_k G_k) (sum of G_k)^-1 for linear layers, the experts' mean for all other
    tensors. G_k = E[x x'] of the inputs of expert k's layer on its own task, with off-diagonal
    entries multiplied by `off_diagonal`. An expert whose layer is never called, or gets zeros
    alone, does not count. If no expert counts, the layer is averaged. The packed experts of a
    mixture are layers, too: their inputs are the positions routed to them.
    Options: `samples` (unlabeled examples per task; 256), `off_diagonal` (factor; 0.9, and 0.1 for
    T5 in the paper), `ridge` (fraction of a moment's mean diagonal, added to every G_k; 1e-6).
    Differences: like FusionBench, it takes the mean over positions, not the sum, so a task with
    longer inputs does not weigh more. Neither FusionBench nor the paper has a ridge.

    Data: `samples` unlabeled examples per task. Memory: two sums in fp64 per linear layer, and the
    moments of one expert. Cost: one pass of the examples through each expert, one product per layer
    and expert, and one Cholesky factor per layer, in fp64 on the CPU. A resumed run gathers and
    solves again.
    """

    config_class = RegMeanConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Gather the moments and solve; all other tensors stay lazy."""
        sums = LayerSums(self.config)
        gathered = moments(
            pool,
            tasks_of(context),
            samples=self.config.samples,
            seed=context.seed,
            device=context.device,
        )
        for expert, layer_moments in track_experts("gather moments", gathered, pool, context):
            sums.add(weights_of(pool, pool.experts[expert], context), layer_moments)
            del layer_moments  # else they stay in memory until the next expert's are computed
        solved = sums.solve()
        self.warn_of_untreated(solved, pool, context)
        return merge_solved(solved, mean_of(pool), pool, context)
