"""LOT merging (arXiv:2505.23859): the task vector whose features drift least, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, RunContext, WeightSource
from fusion_core.weights import Linear
from fusion_regmean.config import LotConfig
from fusion_regmean.experts import over, task_vector_of, weights_of
from fusion_regmean.layered import ForLayers
from fusion_regmean.least_squares import LeastSquares
from fusion_regmean.seen import seen_by_experts

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_regmean.seen import Seen


class Lot(ForLayers, Algorithm[LotConfig]):
    """base + scale * T, T being what changes each layer's outputs most like the experts' do.

    For the weight of a linear layer T = (sum of T_k G_k) (sum of G_k)^+, with T_k the task vectors,
    G_k the sum of x x^T over what expert k's layer is given on its own task, and the pseudo-inverse
    (equation 9): zero where nothing is given. For the weight of a normalisation, the mean of T_k
    weighted feature by feature by the squares of what it multiplies (equation 12; LayerNorm and
    RMSNorm). The mean of T_k for everything else. What is least squares here is as in `regmean`,
    with `off_diagonal` 1. The paper takes 16 to 64 examples a task and a scale from 1.2 to 1.5.

    Data: `samples` unlabeled examples a task. Memory: as `regmean`. Cost: as `regmean`, with an
    eigendecomposition a layer instead of a Cholesky factor: minutes from a few thousand inputs on.
    A run that is resumed looks and solves anew.
    """

    config_class = LotConfig
    treats_vectors = True

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Gather the sums, and solve; the rest stays lazy."""
        linear: dict[str, LeastSquares] = {}
        scaled: dict[str, tuple[Tensor, Tensor]] = {}
        tied: dict[str, list[str]] = {}
        for expert, seen in seen_by_experts(pool, self.config.samples, context):
            vector = task_vector_of(pool, pool.experts[expert], context)
            _add_linear(linear, vector, seen)
            _add_scaled(scaled, vector, seen)
            tied |= seen.tied
        vectors = {name: linear.pop(name).solve_smallest() for name in [*linear]}
        vectors |= {
            name: above / below.where(below > 0, 1) for name, (above, below) in scaled.items()
        }
        base = weights_of(pool, pool.reference, context)
        solved = {
            twin: torch.add(base.tensor(twin), vector, alpha=self.config.scale)
            for name, vector in vectors.items()
            for twin in tied[name]
        }
        self.say_what_is_left(solved, pool, context)
        count = len(pool.experts)
        return over(Linear((self.config.scale / count,) * count), solved, pool, context)


def _add_linear(sums: dict[str, LeastSquares], vector: WeightSource, seen: Seen) -> None:
    for name, moments in seen.moments.items():
        own = vector.tensor(name)
        if name not in sums:
            sums[name] = LeastSquares(own, moments.dim)
        sums[name].add(own, moments.total.cpu().double())


def _add_scaled(sums: dict[str, tuple[Tensor, Tensor]], vector: WeightSource, seen: Seen) -> None:
    for name, energy in seen.energies.items():
        squares = energy.total.cpu().to(vector.infos[name].dtype)
        above, below = sums.get(name, (torch.zeros_like(squares),) * 2)
        sums[name] = (above + squares * vector.tensor(name), below + squares)
