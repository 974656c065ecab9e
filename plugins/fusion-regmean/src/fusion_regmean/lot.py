"""LOT merging (arXiv:2505.23859): the task vector whose features drift least, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, RunContext, WeightSource
from fusion_core.weights import Linear
from fusion_regmean.config import LotConfig
from fusion_regmean.layer_method import ForLayers
from fusion_regmean.layer_statistics import expert_statistics
from fusion_regmean.least_squares import LeastSquares
from fusion_regmean.sources import merge_solved, task_vector_of, weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool


class Lot(ForLayers, Algorithm[LotConfig]):
    """Solve for the task vectors of layers by least squares over their inputs (arXiv:2505.23859).

    Formula: base + scale * T. For the weight of a linear layer, T = (sum of T_k G_k) (sum of
    G_k)^+ with the pseudo-inverse (equation 9), where T_k are the task vectors and G_k is the sum
    of x x' over the inputs of expert k's layer on its own task. T is zero for inputs that no expert
    gets. For the weight of a LayerNorm or RMSNorm, T is the mean of T_k, weighted feature by
    feature by the squares of the values that it multiplies (equation 12). All other task vectors
    are averaged.
    Options: `samples` (unlabeled examples per task; 64), `scale` (factor; 1.2). The paper takes 16
    to 64 examples per task and a scale from 1.2 to 1.5.

    Data: `samples` unlabeled examples per task. Memory: as `regmean`. Cost: as `regmean`, with an
    eigendecomposition per layer instead of a Cholesky factor, which takes minutes from a few
    thousand inputs on. A resumed run gathers and solves again.
    """

    config_class = LotConfig
    treats_vectors = True

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Gather the sums and solve; all other tensors stay lazy."""
        linear: dict[str, LeastSquares] = {}
        scaled: dict[str, tuple[Tensor, Tensor]] = {}
        tied: dict[str, list[str]] = {}
        for expert, statistics in expert_statistics(pool, self.config.samples, context):
            vectors = task_vector_of(pool, pool.experts[expert], context)
            for name, moments in statistics.moments.items():
                vector = vectors.tensor(name)
                if name not in linear:
                    linear[name] = LeastSquares(vector, moments.dim)
                linear[name].add(vector, moments.total.cpu().double())
            for name, energy in statistics.energies.items():
                vector = vectors.tensor(name)
                squares = energy.total.cpu().to(vector.dtype)
                above, below = scaled.get(name, (torch.zeros_like(squares),) * 2)
                scaled[name] = (above + squares * vector, below + squares)
            tied |= statistics.tied
        solutions = {name: linear.pop(name).solve_smallest() for name in [*linear]}
        solutions |= {
            name: above / below.where(below > 0, 1) for name, (above, below) in scaled.items()
        }
        base = weights_of(pool, pool.reference, context)
        solved = {
            twin: torch.add(base.tensor(twin), vector, alpha=self.config.scale)
            for name, vector in solutions.items()
            for twin in tied[name]
        }
        self.warn_of_untreated(solved, pool, context)
        count = len(pool.experts)
        rest = Linear((self.config.scale / count,) * count)
        return merge_solved(solved, rest, pool, context)
