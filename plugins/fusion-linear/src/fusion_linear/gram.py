"""Merges that are linear combinations of the models, with factors that inner products decide.

Every tensor's models are looked at once: their inner products, a K x K matrix in fp64, say all
about norms and angles. So no model is held in memory, and a tensor may be cut between any two
elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import Kernel, Linear, MergedSource, Operands, Piece, Scan, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource

#: Values of a piece, of shape (rows, ...).
Rows = Callable[[Piece], "Tensor"]


def task_vectors(piece: Piece) -> Tensor:
    """Return the experts' task vectors."""
    return piece.task_vectors


def experts(piece: Piece) -> Tensor:
    """Return the experts' weights."""
    return piece.experts


def gram_matrix(scan: Scan, rows: Rows) -> Tensor:
    """Return the inner products of rows over all that a scan sees, of shape (K, K), in fp64."""
    return scan(_Products(rows), torch.add, torch.zeros(1, 1, dtype=torch.float64))


@dataclass(frozen=True)
class _Products:
    """The inner products of one block; a scan's workers are sent it."""

    rows: Rows

    def __call__(self, piece: Piece) -> Tensor:
        rows = self.rows(piece).double().unsqueeze(-1).flatten(1)
        return (rows @ rows.T).cpu()


def norms_and_cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return norms, of shape (K,), and cosines, of shape (K, K): 0 beside a vector of zeros."""
    norms = gram.diagonal().sqrt()
    products = torch.outer(norms, norms)
    return norms, (gram / products.where(products > 0, 1)).clamp(-1, 1)


@dataclass(frozen=True)
class GramCombination(Kernel):
    """The sum of factor * expert, or base + that of factor * task vector where it is `relative`.

    `factors` makes K factors of the K x K Gram matrix of a tensor, or of a model if the scope says
    so. It is picklable.
    """

    factors: Callable[[Tensor], Tensor]
    relative: bool
    scope: Scope = Scope.TENSOR

    def survey(self, scan: Scan) -> Linear:
        """Find the factors."""
        gram = gram_matrix(scan, task_vectors if self.relative else experts)
        return Linear(tuple(self.factors(gram).tolist()), relative=self.relative)

    def merge(self, piece: Piece) -> Tensor:
        """Combine one piece."""
        combination: Linear = piece.state
        return combination.merge(piece)


def merge_models(
    models: Mapping[str, WeightSource],
    pool: ModelPool[Any],
    kernel: Kernel,
    context: RunContext,
) -> WeightSource:
    """Return the lazy merge of some of a pool's models, of which the base may be one."""
    layout = pool.layout
    base = None if pool.base is None else layout.unpacked(pool.base)
    experts = {name: layout.unpacked(model) for name, model in models.items()}
    operands = Operands(base, experts, finite=context.finite, device=context.device)
    return layout.packed(MergedSource(kernel, operands))
