"""Low-rank task vectors, and STAR (arXiv:2502.10339): their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Piece, Transform
from fusion_core.weights import Linear, decompose, is_matrix
from fusion_spectral.config import StarConfig, TruncateConfig
from fusion_spectral.matrixwise import ForMatrices, Matrixwise

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, WeightSource
    from fusion_core.weights import Components


class Truncate(Matrixwise, Transform[TruncateConfig]):
    """Keep each task vector's largest singular components, matrix by matrix.

    As few are kept as reach `keep`: of the sum of singular values (`nuclear`, as STAR), of the sum
    of their squares (`energy`), or of the number of those that are not zero (`fraction`, rounded
    down); and at least one. So half of an adapter of rank 16 is 8, whatever the size of the matrix.
    With `rescale`, the singular values kept are scaled to the sum of all. What is not a matrix is
    left as it is. Data: none. Cost: an eigendecomposition per matrix and expert, of its smaller
    Gram matrix.
    """

    config_class = TruncateConfig
    otherwise = "left as they are"
    pieces_held, squares = (3.6, 3.6), (5, 0)

    def rows(self, piece: Piece) -> Tensor:
        """Return rows of the same shape, (experts, ...)."""
        rows = piece.task_vectors
        return torch.stack([self._cut(row) for row in rows]) if is_matrix(piece.shape) else rows

    def _cut(self, row: Tensor) -> Tensor:
        parts = decompose(row)
        kept = parts.largest(self._kept(parts))
        total = kept.values.sum()
        if self.config.rescale and total > 0:
            kept = kept._replace(values=kept.values * (parts.values.sum() / total))
        return kept.product()

    def _kept(self, parts: Components) -> int:
        """Return how many components reach `keep`."""
        if self.config.by == "fraction":
            return max(1, int(self.config.keep * parts.rank))
        values = parts.values.double()
        reached = (values if self.config.by == "nuclear" else values.square()).cumsum(0)
        return int((reached < self.config.keep * reached[-1]).sum()) + 1


class Star(ForMatrices, Algorithm[StarConfig]):
    """base + mean of the task vectors that `truncate` makes by nuclear norm, rescaled.

    The same as `[{name: truncate, keep: 0.4}, {name: task-arithmetic, scale: 1 / experts}]`, and
    computed by it. As the authors' code without a known rank; it is for LoRA's matrices, and
    everything else is averaged here. Data: none. Cost: that of `truncate`.
    """

    config_class = StarConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge."""
        cut = context.transformed(pool, Truncate(keep=self.config.keep))
        return context.merged(cut, Linear((1 / len(pool.experts),) * len(pool.experts)))
