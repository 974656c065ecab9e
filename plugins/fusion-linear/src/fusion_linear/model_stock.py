"""Model Stock (arXiv:2403.19522): between the base and the mean, as the experts' angles say."""

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

#: The share of 1 + (K - 1) c below which the task vectors' directions cancel.
_CANCELLED = 1e-6


class ModelStock(Algorithm[ModelStockConfig]):
    """base + t * (mean of the task vectors), with t = K c / (1 + (K - 1) c).

    c is the mean cosine of pairs of task vectors, each tensor one vector, or each model (`scope:
    model`). Made for experts of one task: where task vectors are at right angles t is 0, and where
    c is negative so is t, as the formula says and mergekit and FusionBench compute. A task vector
    of zeros is at a right angle to all others; where directions cancel, the base stays. Cosines are
    exact however small the task vectors: mergekit bounds products of norms by 1e-6, and so holds
    equal experts' biases for different. Shapes: any. Data: none. Cost: two passes.
    """

    config_class = ModelStockConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation."""
        scope = Scope(self.config.scope)
        return context.merged(pool, GramCombination(_factors, relative=True, scope=scope))


def _factors(gram: Tensor) -> Tensor:
    """Return t / K for every expert."""
    _, cosines = norms_and_cosines(gram)
    count = len(cosines)
    cosine = cosines.triu(1).sum() / (count * (count - 1) / 2)
    divisor = 1 + (count - 1) * cosine
    ratio = count * cosine / divisor if divisor > _CANCELLED else torch.zeros_like(cosine)
    return (ratio / count).expand(count)
