"""Fisher merging (arXiv:2111.09832): average parameters by their Fisher information."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from fusion_adapting import squared_gradients
from fusion_core import Algorithm, RunContext, WeightSource, expert_weights
from fusion_core.errors import RecipeError
from fusion_core.weights import Linear
from fusion_regmean.config import FisherConfig
from fusion_regmean.sources import merge_solved, tasks_of, track_experts, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import ModelPool


#: The largest number of classes for which the expectation is exact.
_EXACT_UP_TO = {"auto": 16, "exact": sys.maxsize, "sampled": 0}


class Fisher(Algorithm[FisherConfig]):
    """Average every parameter by its Fisher information on unlabeled data (arXiv:2111.09832).

    Formula: sum of c_k F_k W_k / sum of c_k F_k, with F_k = E[(d log p(y|x) / d W_k)^2], at least
    `floor`. The expectation is over single examples x of expert k's own task and over labels y from
    the expert's predictions. c_k is the expert's factor in `weights`, divided by the norm of its
    F_k over the merged parameters unless `normalize: false`. Floating-point tensors that are not
    parameters are averaged by `weights`.
    Options: `samples` (unlabeled examples per task; 256), `labels` (`auto`), `floor` (squared
    gradient; 1e-6), `normalize` (true), `weights` (one factor per expert; 1 each). `exact` takes
    the expectation over all classes. `sampled` takes one draw per example (Monte-Carlo Fisher),
    which is unbiased and needs one backward pass per example. `auto` is exact for up to 16 classes:
    an exact expectation has no variance, and small models can afford the passes. Use `sampled`
    where a backward pass takes a tenth of a second or more.
    Source: arXiv:2111.09832. Normalisation and floor are the authors' code's. FusionBench adds the
    floor, and squares gradients that are summed over a batch and its classes, which is not the
    paper.

    Data: `samples` unlabeled examples per task. Memory: two sums and one expert's F, each as large
    as the model in fp32, and a gradient, or as many as `compute_squared_gradients` computes at
    once. Cost: two forward passes per example, and one backward pass per example and label. A
    resumed run gathers again.
    """

    config_class = FisherConfig

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Count the two sums, one expert's information, the live expert and a gradient."""
        del pool
        return 5 * model

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Gather the sums; tensors that are not parameters stay lazy."""
        factors = expert_weights(self.config.weights, list(pool.experts))
        if min(factors) < 0 or not any(factors):
            raise RecipeError(
                "algorithm.weights: expected no negative factor, and at least one above zero",
                hint="Change them, or use 1 each: --set algorithm.weights=null",
            )
        squares = squared_gradients(
            pool,
            tasks_of(context),
            samples=self.config.samples,
            seed=context.seed,
            device=context.device,
            exact_up_to=_EXACT_UP_TO[self.config.labels],
        )
        tracked = track_experts("square gradients", squares, pool, context)
        products: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        for (expert, information), factor in zip(tracked, factors, strict=True):
            weights = weights_of(pool, pool.experts[expert], context)
            scale = factor / self._norm(information)
            for name in [*information]:
                share = information.pop(name).clamp_min(self.config.floor).mul_(scale).cpu()
                _add(products, name, weights.tensor(name) * share)
                _add(totals, name, share)
        solved = {name: products.pop(name).div_(totals.pop(name)) for name in [*products]}
        rest = Linear(tuple(factor / sum(factors) for factor in factors), relative=False)
        return merge_solved(solved, rest, pool, context)

    def _norm(self, information: Mapping[str, Tensor]) -> float:
        """Return the norm of an expert's information, or 1 if it is zero or not used."""
        if not self.config.normalize:
            return 1.0
        distinct = {id(values): values for values in information.values()}  # tied names share one
        return math.hypot(*(values.norm().item() for values in distinct.values())) or 1.0


def _add(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    sums[name] = sums[name].add_(values) if name in sums else values
