"""Model Stock (arXiv:2403.19522): interpolate from the base to the mean by the experts' angles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, RunContext
from fusion_core.weights import Scope, WeightSource
from fusion_linear.config import ModelStockConfig
from fusion_linear.gram import GramCombination, norms_and_cosines

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool

#: Below this value of 1 + (K - 1) c, the task vectors' directions cancel.
_CANCELLED = 1e-6


class ModelStock(Algorithm[ModelStockConfig]):
    """Interpolate from the base to the mean of the experts by their angles (arXiv:2403.19522).

    Formula: base + t * mean of tau_k, with t = K c / (1 + (K - 1) c) and c the mean cosine of pairs
    of task vectors. A task vector of zeros is orthogonal to all others. Where directions cancel,
    the base stays. The method is made for experts of one task: orthogonal task vectors give t = 0,
    and a negative c gives a negative t, as in mergekit and FusionBench.
    Options: `scope` (one ratio per `tensor`, or one per `model`; `tensor`).
    Differences: cosines are exact for task vectors of any size. mergekit bounds the products of
    norms from below by 1e-6, which makes equal experts look different in small tensors.
    Shapes: any. Data: none. Cost: two passes.
    """

    config_class = ModelStockConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation."""
        scope = Scope(self.config.scope)
        return context.merge(pool, GramCombination(_factors, relative=True, scope=scope))


def _factors(gram: Tensor) -> Tensor:
    """Return t / K for every expert."""
    _, cosines = norms_and_cosines(gram)
    count = len(cosines)
    cosine = cosines.triu(1).sum() / (count * (count - 1) / 2)
    divisor = 1 + (count - 1) * cosine
    ratio = count * cosine / divisor if divisor > _CANCELLED else torch.zeros_like(cosine)
    return (ratio / count).expand(count)
