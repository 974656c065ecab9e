"""Linear combinations of models whose factors depend on the models' inner products.

The inner products of a tensor's K models, a K x K matrix in fp64, determine all norms and angles
between them. One pass gathers them, so no model is held in memory, and a tensor may be cut between
any two elements.
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

#: Sums per inner product, a power of two.
_LANES = 8192
#: Selects the values of a piece, of shape (rows, ...).
Rows = Callable[[Piece], "Tensor"]


def get_task_vectors(piece: Piece) -> Tensor:
    """Return the experts' task vectors."""
    return piece.task_vectors


def get_experts(piece: Piece) -> Tensor:
    """Return the experts' weights."""
    return piece.experts


def gram_matrix(scan: Scan, rows: Rows) -> Tensor:
    """Return the inner products of the rows over a whole scan, of shape (K, K), in fp64."""
    return scan(InnerProducts(rows), torch.add, torch.zeros(1, 1, dtype=torch.float64))


@dataclass(frozen=True)
class InnerProducts:
    """The inner products of one block, of shape (K, K), in fp64.

    Their order is the same on every processor, and for compiled code. Products of entries whose
    positions differ by a multiple of 8192 are added in order. The second half of the 8192 sums is
    added to the first half, until one is left. Products of fp32 numbers are exact in fp64.
    """

    rows: Rows

    @property
    def relative(self) -> bool | None:
        """Whether the rows are the task vectors, or the experts; None for other rows."""
        known: dict[Rows, bool] = {get_task_vectors: True, get_experts: False}
        return known.get(self.rows)

    def __call__(self, piece: Piece) -> Tensor:
        """Multiply one block."""
        rows = self.rows(piece).unsqueeze(-1).flatten(1)
        count = len(rows)
        sums = [rows.new_zeros(count - n, _LANES, dtype=torch.float64) for n in range(count)]
        for strip in torch.split(rows, _LANES, dim=1):
            entries = strip.double()
            for first, total in enumerate(sums):
                total[:, : strip.shape[1]].addcmul_(entries[first:], entries[first])
        products = torch.zeros(count, count, dtype=torch.float64)
        for first, total in enumerate(sums):
            products[first, first:] = products[first:, first] = _sum_halves(total).cpu()
        return products


def _sum_halves(rows: Tensor) -> Tensor:
    while (half := rows.shape[1] // 2) > 0:
        rows = rows[:, :half] + rows[:, half:]
    return rows.squeeze(1)


def norms_and_cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return norms (K,) and cosines (K, K); the cosine with a zero vector is 0."""
    norms = gram.diagonal().sqrt()
    products = torch.outer(norms, norms)
    return norms, (gram / products.where(products > 0, 1)).clamp(-1, 1)


@dataclass(frozen=True)
class GramCombination(Kernel):
    """The sum of factor * expert or, if `relative`, base + the sum of factor * task vector.

    `factors` maps the K x K Gram matrix of a tensor (of the model, if the scope says so) to K
    factors. It must be picklable.
    """

    factors: Callable[[Tensor], Tensor]
    relative: bool
    scope: Scope = Scope.TENSOR

    def survey(self, scan: Scan) -> Linear:
        """Return the combination with its factors."""
        gram = gram_matrix(scan, get_task_vectors if self.relative else get_experts)
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
    """Return the lazy merge of some of a pool's models; the base may be one of them."""
    layout = pool.layout
    base = None if pool.base is None else layout.unpack(pool.base)
    experts = {name: layout.unpack(model) for name, model in models.items()}
    operands = Operands(
        base, experts, finite=context.finite, device=context.device, kernels=context.kernels
    )
    return layout.pack(MergedSource(kernel, operands))
