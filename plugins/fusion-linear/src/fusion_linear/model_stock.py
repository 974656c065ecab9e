"""Model Stock (arXiv:2403.19522): interpolate from the base to the mean by the experts' angles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, RunContext
from fusion_core.weights import Cut, Kernel, Piece, Scope, WeightSource, sum_in_order
from fusion_linear.config import ModelStockConfig
from fusion_linear.gram import GramCombination, norms_and_cosines

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_linear.config import PairMean

#: Below this value of 1 + (K - 1) c, the task vectors' directions cancel.
_CANCELLED = 1e-6


class ModelStock(Algorithm[ModelStockConfig]):
    """Interpolate from the base to the mean of the experts by their angles (arXiv:2403.19522).

    Formula: base + t * mean of tau_k, with t = K c / (1 + (K - 1) c) and c the mean cosine of pairs
    of task vectors. A task vector of zeros is orthogonal to all others. Where directions cancel,
    the base stays. The method is made for experts of one task: orthogonal task vectors give t = 0,
    and a negative c gives a negative t, as in mergekit and FusionBench.
    Options: `scope` (one ratio per `tensor`, per `model`, or per `row`; `tensor`), `mean_of`
    (`cosines`, or `angles`: c is the cosine of the pairs' mean angle; `cosines`). Rows run along
    the last dimension, and a vector is one row: the paper's filters, and mergekit's `filter_wise`.
    A row of a convolution is an output channel here, since a convolution is one matrix (out,
    in * k * k); with `alignment.matrices: stored` it is as in mergekit.
    The paper derives t for one angle between all pairs. mergekit then averages cosines, and
    FusionBench angles.
    Differences: cosines are exact for task vectors of any size. mergekit bounds the products of
    norms from below by 1e-6, which makes equal experts look different in small tensors.
    Shapes: any. Data: none. Cost: two passes.
    """

    config_class = ModelStockConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy interpolation."""
        mean_of = self.config.mean_of
        if self.config.scope == "row":
            return context.merge(pool, RowStock(mean_of))
        factors = partial(_factors, mean_of=mean_of)
        scope = Scope(self.config.scope)
        return context.merge(pool, GramCombination(factors, relative=True, scope=scope))


@dataclass(frozen=True)
class RowStock(Kernel):
    """The interpolation with one ratio per row."""

    mean_of: PairMean

    cut = Cut.ROW
    pieces_held = (3, 5)  # in fp64

    def merge(self, piece: Piece) -> Tensor:
        """Interpolate the rows of one piece."""
        rows = piece.task_vectors.double()
        lines = rows.unsqueeze(-1) if rows.dim() == 1 else rows
        lengths = torch.linalg.vector_norm(lines, dim=-1, keepdim=True)
        units = lines / lengths.where(lengths > 0, 1)
        count = len(rows)
        pairs = [(one * other).sum(-1, keepdim=True) for one, other in combinations(units, 2)]
        ratio = _ratio(_mean_cosine(torch.stack(pairs), self.mean_of), count)
        mean = sum_in_order(lines) / count
        return (ratio * mean).reshape(rows.shape[1:]).to(piece.base).add_(piece.base)


def _factors(gram: Tensor, *, mean_of: PairMean) -> Tensor:
    """Return t / K for every expert."""
    _, cosines = norms_and_cosines(gram)
    count = len(cosines)
    one, other = torch.triu_indices(count, count, 1)
    return (_ratio(_mean_cosine(cosines[one, other], mean_of), count) / count).expand(count)


def _mean_cosine(cosines: Tensor, mean_of: PairMean) -> Tensor:
    """Return the mean over pairs, the first dimension, or the cosine of their mean angle."""
    if mean_of == "angles":
        return sum_in_order(cosines.clamp(-1, 1).arccos()).div(len(cosines)).cos()
    return sum_in_order(cosines) / len(cosines)


def _ratio(cosine: Tensor, count: int) -> Tensor:
    """Return t for mean cosines of `count` task vectors."""
    divisor = 1 + (count - 1) * cosine
    is_cancelled = divisor <= _CANCELLED
    return (count * cosine / divisor.where(~is_cancelled, 1)).where(~is_cancelled, 0)
