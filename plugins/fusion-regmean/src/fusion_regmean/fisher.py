"""Fisher merging (arXiv:2111.09832): parameters averaged by their information."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from fusion_adapting import squared_gradients
from fusion_core import Algorithm, RunContext, WeightSource, expert_weights
from fusion_core.errors import RecipeError
from fusion_core.weights import Linear
from fusion_regmean.config import FisherConfig
from fusion_regmean.experts import over, tasks_of, tracked, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from fusion_core import ModelPool


#: The most classes for which all labels are looked at.
_EXACT_UP_TO = {"auto": 16, "exact": sys.maxsize, "sampled": 0}


class Fisher(Algorithm[FisherConfig]):
    """sum of c_k F_k W_k / sum of c_k F_k for every parameter, F_k being at least `floor`.

    F_k is the mean over examples x of expert k's own task, and the expectation over labels y that
    the expert predicts, of (d log p(y|x) / d W)^2, an example at a time: no labels are needed. c_k
    is the expert's factor of `weights`, divided by the norm of all its F_k, as the authors' code
    and FusionBench do; the plain equation has `normalize: false`. FusionBench squares gradients
    summed over a batch and its classes, which are not the paper's; the floor is the authors'
    (FusionBench adds it). Floating-point tensors that are not parameters are averaged by `weights`.

    With `labels: sampled` the expectation over y is one draw per example: Monte-Carlo Fisher, which
    is right on average and takes one backward pass per example. `auto`, the default, is exact for
    up to 16 classes, because an exact expectation has no variance and a few passes more are cheap
    for small models. Use `sampled` where a backward pass takes a tenth of a second or more.

    Data: `samples` unlabeled examples per task. Memory: two sums and one expert's F, each as large
    as the model in fp32, and a gradient, or as many as `squared_gradients_of` finds at once. Cost:
    two forward passes per example, and one backward pass per example and label. A run that is
    resumed gathers anew.
    """

    config_class = FisherConfig

    def held_memory(self, model: int, experts: int) -> int:
        """Count the two sums, one expert's information, the live expert and a gradient."""
        del experts
        return 5 * model

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Gather the sums; what is not a parameter stays lazy."""
        factors = self._factors(pool)
        products: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        gathered = self._gathered(pool, context)
        for (expert, found), factor in zip(gathered, factors, strict=True):
            weights = weights_of(pool, pool.experts[expert], context)
            scale = factor / self._norm(found)
            for name in [*found]:
                share = found.pop(name).clamp_min(self.config.floor).mul_(scale).cpu()
                _add(products, name, weights.tensor(name) * share)
                _add(totals, name, share)
        solved = {name: products.pop(name).div_(totals.pop(name)) for name in [*products]}
        rest = Linear(tuple(each / sum(factors) for each in factors), relative=False)
        return over(rest, solved, pool, context)

    def _factors(self, pool: ModelPool[Any]) -> list[float]:
        """Return the experts' factors; raises `RecipeError` where they make no average."""
        factors = expert_weights(self.config.weights, list(pool.experts))
        if min(factors) < 0 or not any(factors):
            raise RecipeError(
                "weights: an average has no negative factors, and not zeros alone",
                hint="Give factors that are not negative; --set algorithm.weights=null: 1 each.",
            )
        return factors

    def _gathered(
        self, pool: ModelPool[Any], context: RunContext
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        gathered = squared_gradients(
            pool,
            tasks_of(context),
            samples=self.config.samples,
            seed=context.seed,
            device=context.device,
            exact_up_to=_EXACT_UP_TO[self.config.labels],
        )
        return tracked("square gradients", gathered, pool, context)

    def _norm(self, found: Mapping[str, Tensor]) -> float:
        """Return the norm of an expert's information, 1 where it has none or it does not count."""
        if not self.config.normalize:
            return 1.0
        distinct = {id(each): each for each in found.values()}  # tied names have the same tensor
        return math.hypot(*(each.norm().item() for each in distinct.values())) or 1.0


def _add(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    sums[name] = sums[name].add_(values) if name in sums else values
