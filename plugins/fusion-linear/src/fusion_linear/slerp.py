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
from fusion_linear.gram import GramCombination, get_experts, get_task_vectors, merge_models
from fusion_linear.shares import expert_shares

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool

#: Two vectors count as parallel above these values of |cos|.
_SLERP_PARALLEL, _NUSLERP_PARALLEL = 0.9995, 1 - 1e-12
#: Below this cosine, rounding alone would choose the arc between two vectors.
_OPPOSITE = -0.9995


class Slerp(Algorithm[SlerpConfig]):
    """Interpolate along the arc between two models, tensor by tensor.

    Formula: (sin((1 - t) w) * first + sin(t w) * second) / sin(w), with w the angle between both,
    and (1 - t) * first + t * second where |cos w| > 0.9995, as for most fine-tuned models and their
    base. A tensor of zeros is orthogonal to all others. The models are the base and the expert or,
    if there are two experts, those two, and a base takes no part.
    Options: `t` (position from 0, the first model, to 1, the second; 0.5).
    Source: mergekit's `slerp` (no paper), where the first model is always the base. Here inner
    products are in fp64.
    Shapes: any. Data: none. Cost: two passes over both models.
    """

    config_class = SlerpConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation; raises `RecipeError` if the pool has one model."""
        if len(pool.experts) > 1:
            models = pool.experts
        elif pool.base is not None:
            models = {"base": pool.base, **pool.experts}
        else:
            raise RecipeError(
                "algorithm 'slerp' needs two models, but the model pool has one expert and no base",
                hint="Add a base or a second expert to the model pool.",
            )
        factors = partial(_flat_factors, t=self.config.t, parallel=_SLERP_PARALLEL)
        return merge_models(models, pool, GramCombination(factors, relative=False), context)


class NuSlerp(Algorithm[NuSlerpConfig]):
    """Interpolate along the arc from the first expert to the second, by weights.

    Formula: base + slerp(tau_1, tau_2) at t = w_2 / (w_1 + w_2), with `slerp` as in the method of
    that name. Without a base, slerp(expert_1, expert_2). Only parallel vectors, and opposite ones
    (cosines below -0.9995), are interpolated in a straight line: between opposite vectors rounding
    alone would choose the arc.
    Options: `weights` (one factor per expert; 1 each), `mode` (`flat`). One vector is a whole
    tensor (`flat`), a row W[i, ...] along the last dimension (`row`), or a column along the first
    dimension (`column`). A convolution is a matrix (out, in * k * k) unless `alignment.matrices`
    is `stored`, as in mergekit. Weights that cancel are an error, while mergekit takes t = 0.5.
    Source: mergekit's `nuslerp` (no paper). Its `nuslerp_flatten: false` is `row`; with
    `nuslerp_row_wise: true` as well it is, in spite of the name, `column`.
    Shapes: any. Data: none. Cost: two passes for `flat`, else one; `column` holds a whole tensor.
    """

    config_class = NuSlerpConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation."""
        _, t = expert_shares(self.config.weights, pool.experts)
        relative = pool.base is not None
        if self.config.mode == "flat":
            factors = partial(_flat_factors, t=t, parallel=_NUSLERP_PARALLEL)
            return context.merge(pool, GramCombination(factors, relative=relative))
        dim = -1 if self.config.mode == "row" else 0
        return context.merge(pool, _DimensionSlerp(t, dim, relative))


@dataclass(frozen=True)
class _DimensionSlerp(Kernel):
    """NuSLERP of all vectors along one dimension: -1 needs whole rows, any other whole tensors."""

    t: float
    dim: int
    relative: bool

    @property
    def cut(self) -> Cut:
        """Keep every vector whole."""
        return Cut.ROW if self.dim == -1 else Cut.TENSOR

    def merge(self, piece: Piece) -> Tensor:
        """Interpolate one piece."""
        first, second = (get_task_vectors if self.relative else get_experts)(piece)
        pairs = ((first, first), (first, second), (second, second))
        products = [(a.double() * b.double()).sum(self.dim, keepdim=True) for a, b in pairs]
        factors = _arc_factors(*products, t=self.t, parallel=_NUSLERP_PARALLEL)
        merged: Tensor = first * factors[0].to(first) + second * factors[1].to(second)
        return merged.add_(piece.base) if self.relative else merged


def _flat_factors(gram: Tensor, *, t: float, parallel: float) -> Tensor:
    return torch.stack(_arc_factors(gram[0, 0], gram[0, 1], gram[1, 1], t=t, parallel=parallel))


def _arc_factors(
    first_square: Tensor, product: Tensor, second_square: Tensor, *, t: float, parallel: float
) -> tuple[Tensor, Tensor]:
    """Return the factors of two vectors, given their squared norms and their inner product."""
    norms = (first_square * second_square).sqrt()
    cosine = (product / norms.where(norms > 0, 1)).clamp(-1, 1)
    is_arc = (cosine <= parallel) & (cosine >= max(-parallel, _OPPOSITE))
    angle = cosine.where(is_arc, 0).acos()
    first = (((1 - t) * angle).sin() / angle.sin()).where(is_arc, 1 - t)
    return first, ((t * angle).sin() / angle.sin()).where(is_arc, t)
