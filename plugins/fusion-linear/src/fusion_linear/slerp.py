"""Interpolation along the arc between two models: SLERP, and NuSLERP between two experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Cut, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import Kernel, Piece, WeightSource
from fusion_linear.config import NuSlerpConfig, SlerpConfig
from fusion_linear.gram import GramCombination, experts, merge_models, task_vectors
from fusion_linear.shares import expert_shares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import ModelPool

#: The largest |cos| between two vectors that are not taken for parallel.
_SLERP, _NUSLERP = 0.9995, 1 - 1e-12
#: The smallest cosine of two vectors that have one arc between them.
_OPPOSITE = -0.9995


class Slerp(Algorithm[SlerpConfig]):
    """sin((1 - t) w) / sin(w) * first + sin(t w) / sin(w) * second, w the angle between both.

    Each tensor is one vector. Where |cos w| > 0.9995 it is (1 - t) * first + t * second, which is
    the case of most fine-tuned models and their base. A tensor of zeros is at a right angle to all
    others. The models are the base and the expert or, given two experts, these, and a base takes no
    part. As mergekit's `slerp` (there the base is always the first), with inner products in fp64.
    Shapes: any. Data: none. Cost: two passes over both models.
    """

    config_class = SlerpConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation."""
        factors = partial(_flat_factors, t=self.config.t, parallel=_SLERP)
        kernel = GramCombination(factors, relative=False)
        return merge_models(_both(pool), pool, kernel, context)


def _both(pool: ModelPool[Any]) -> Mapping[str, WeightSource]:
    """Return the two models that a pool has; raises `RecipeError` if there is one."""
    if len(pool.experts) > 1:
        return pool.experts
    if pool.base is None:
        raise RecipeError(
            "algorithm 'slerp' takes two models, and the model pool has one expert and no base",
            hint="Give the model pool a base, or another expert.",
        )
    return {"base": pool.base, **pool.experts}


class NuSlerp(Algorithm[NuSlerpConfig]):
    """SLERP from the first expert to the second, at t = second weight / sum of the weights.

    With a base, between their task vectors. A tensor is one vector (`flat`), or each of its rows
    W[i, ...] along the last dimension is (`row`), or each of its columns along the first
    (`column`). Parallel vectors are interpolated in a straight line, and opposite ones (cosines
    below -0.9995), between which rounding alone would choose the arc; no others. As mergekit's
    `nuslerp`: its `nuslerp_flatten: false` is `row`, and `nuslerp_row_wise: true` beside it, in
    spite of the name, `column`. Weights that cancel are refused (mergekit takes t = 0.5). Shapes:
    any. Data: none. Cost: `flat` two passes, else one; `column` holds a whole tensor.
    """

    config_class = NuSlerpConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation."""
        _, t = expert_shares(self.config.weights, pool.experts)
        relative = pool.base is not None
        if self.config.mode == "flat":
            factors = partial(_flat_factors, t=t, parallel=_NUSLERP)
            return context.merged(pool, GramCombination(factors, relative=relative))
        dim = -1 if self.config.mode == "row" else 0
        return context.merged(pool, _AlongDimension(t, dim, relative))


@dataclass(frozen=True)
class _AlongDimension(Kernel):
    """NuSLERP of all vectors along a dimension: -1, which rows have whole, or another."""

    t: float
    dim: int
    relative: bool

    @property
    def cut(self) -> Cut:
        """Rows are whole, or all of a tensor is."""
        return Cut.ROW if self.dim == -1 else Cut.TENSOR

    def merge(self, piece: Piece) -> Tensor:
        """Interpolate one piece."""
        first, second = (task_vectors if self.relative else experts)(piece)
        pairs = ((first, first), (first, second), (second, second))
        products = [(a.double() * b.double()).sum(self.dim, keepdim=True) for a, b in pairs]
        one, other = _arc(*products, t=self.t, parallel=_NUSLERP)
        moved: Tensor = first * one.to(first) + second * other.to(second)
        return moved.add_(piece.base) if self.relative else moved


def _flat_factors(gram: Tensor, *, t: float, parallel: float) -> Tensor:
    return torch.stack(_arc(gram[0, 0], gram[0, 1], gram[1, 1], t=t, parallel=parallel))


def _arc(
    first: Tensor, between: Tensor, second: Tensor, *, t: float, parallel: float
) -> tuple[Tensor, Tensor]:
    """Return the factors of two vectors, given their squared norms and inner product."""
    norms = (first * second).sqrt()
    cosine = (between / norms.where(norms > 0, 1)).clamp(-1, 1)
    is_arc = (cosine <= parallel) & (cosine >= max(-parallel, _OPPOSITE))
    angle = cosine.where(is_arc, 0).acos()
    one = (((1 - t) * angle).sin() / angle.sin()).where(is_arc, 1 - t)
    return one, ((t * angle).sin() / angle.sin()).where(is_arc, t)
