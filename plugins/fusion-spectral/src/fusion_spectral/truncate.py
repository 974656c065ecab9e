"""Low-rank task vectors, and STAR (arXiv:2502.10339), which averages them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Piece, Transform, expert_values
from fusion_core.weights import Linear, decompose
from fusion_spectral.config import StarConfig, TruncateConfig
from fusion_spectral.matrixwise import ForMatrices, Matrixwise

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource
    from fusion_core.weights import Components


class Truncate(Matrixwise, Transform[TruncateConfig]):
    """Keep each task vector's largest singular components (STAR's first step, arXiv:2502.10339).

    Formula: the largest components U_k S_k V_k' of tau_k, as few as reach `keep`, at least one. All
    other tensors stay as they are.
    Options: `by` (`nuclear`), `keep` (fraction; 0.4), `rescale` (scale the kept singular values to
    the sum of all; true). `keep` is a fraction of the sum of singular values (`nuclear`, as STAR),
    of the sum of their squares (`energy`), or of the number of nonzero ones (`fraction`, rounded
    down). Half of an adapter of rank 16 is 8, whatever the size of the matrix.
    Data: none. Cost: one eigendecomposition of the smaller Gram matrix per matrix and expert.
    """

    config_class = TruncateConfig
    other_tensors = "left as they are"
    pieces_held, squares = (3.6, 3.6), (5, 0)

    def rows(self, piece: Piece) -> Tensor:
        """Return truncated task vectors of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        if not self.decomposes(rows):
            return rows
        fractions = expert_values(self.config.keep, piece.names, "keep")
        pairs = zip(rows, fractions, strict=True)
        return torch.stack([self._truncate(row, keep) for row, keep in pairs])

    def _truncate(self, row: Tensor, keep: float) -> Tensor:
        parts = decompose(row)
        largest = parts.largest(self._count(parts, keep))
        total = largest.values.sum()
        if self.config.rescale and total > 0:
            largest = largest._replace(values=largest.values * (parts.values.sum() / total))
        return largest.product()

    def _count(self, parts: Components, keep: float) -> int:
        """Return how many components reach `keep`."""
        if self.config.by == "fraction":
            return max(1, int(keep * parts.rank))
        values = parts.values.double()
        sums = (values if self.config.by == "nuclear" else values.square()).cumsum(0)
        return int((sums < keep * sums[-1:]).sum()) + 1


class Star(ForMatrices, Algorithm[StarConfig]):
    """Average task vectors truncated to their largest components and rescaled (arXiv:2502.10339).

    Formula: base + mean of truncate(tau_k), by nuclear norm and rescaled, as
    `[{name: truncate, keep: 0.4}, {name: task-arithmetic, scale: 1 / experts}]` computes it.
    Options: `keep` (fraction of the nuclear norm; 0.4).
    Source: the authors' code without a known rank, which is for LoRA's matrices. All other tensors
    are averaged here. Data: none. Cost: that of `truncate`.
    """

    config_class = StarConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        truncate = Truncate(keep=self.config.keep, matrices=self.config.matrices)
        truncated = context.transform(pool, truncate)
        return context.merge(truncated, Linear((1 / len(pool.experts),) * len(pool.experts)))
