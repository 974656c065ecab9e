"""MetaGPT (arXiv:2406.11385): task arithmetic with factors in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, RunContext
from fusion_core.weights import Scope, WeightSource
from fusion_linear.config import MetaGptConfig
from fusion_linear.gram import GramCombination

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool


class MetaGpt(Algorithm[MetaGptConfig]):
    """Add the task vectors to the base, each weighted by its squared norm (arXiv:2406.11385).

    Formula: base + sum of lambda_k * tau_k, with lambda_k = |tau_k|^2 / sum of |tau_j|^2 over whole
    models. The factors sum to one and minimise a bound of the tasks' mean loss, if models are
    linear near the base and task vectors orthogonal.
    Options: none. Shapes: any. Data: none. Cost: two passes.
    """

    config_class = MetaGptConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy linear combination."""
        return context.merge(pool, GramCombination(_factors, relative=True, scope=Scope.MODEL))


def _factors(gram: Tensor) -> Tensor:
    squares = gram.diagonal()
    total = squares.sum()
    return squares / total.where(total > 0, 1)
