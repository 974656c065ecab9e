"""Base classes for stages that treat matrices one by one."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch

from fusion_core import ComponentConfig, Cut, Piece, TensorwiseAlgorithm
from fusion_core.weights import PieceKernel, is_matrix, sum_in_order
from fusion_spectral.config import MatrixConfig, ScaleConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_core import TensorInfo
    from fusion_core.weights import Layout

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)

#: Part of an expert's norm that rounding may put into any direction.
ROUNDING = 1e-6


class ForMatrices:
    """A stage that applies only to matrices, and says what happens to all other tensors."""

    #: what happens to other tensors, as the plan and the warnings say it
    other_tensors: ClassVar[str] = "averaged"

    @property
    def _kinds(self) -> str:
        """The tensors that count as matrices: `all`, `stored` or `none`."""
        config = getattr(self, "config", None)
        return config.matrices if isinstance(config, MatrixConfig) else "all"

    @property
    def as_stored(self) -> bool:
        """Whether matrices inside of a packed tensor are not treated one by one."""
        return self._kinds != "all"

    def takes(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of this shape is treated as a matrix."""
        return self._kinds != "none" and is_matrix(shape)

    def matrices_of(self, info: TensorInfo, layout: Layout) -> Sequence[TensorInfo]:
        """Return the matrices inside of a tensor, or the tensor as it is stored."""
        return [info] if self.as_stored else layout.describe_matrices(info)

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that is not a matrix."""
        return None if self.takes(info.shape) else self.other_tensors


class Matrixwise(ForMatrices, PieceKernel):
    """A stage that needs whole matrices.

    Besides tensors of a matrix's shape (`pieces_held`), a worker holds square matrices. Numbers in
    fp64 count twice.
    """

    #: squares that a worker holds, and additional ones per expert
    squares: ClassVar[tuple[float, float]]

    cut = Cut.TENSOR

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Count the pieces and, for a matrix, the squares."""
        fixed, per_expert = self.squares
        count = fixed + per_expert * experts
        squares = count * self.side(shape) ** 2 if self.takes(shape) else 0
        return super().working_memory(shape, experts) + squares

    def decomposes(self, rows: Tensor) -> bool:
        """Tell whether task vectors (experts, ...) are matrices with any component.

        Adapters leave embeddings as they are, often the largest matrices of all.
        """
        return self.takes(rows.shape[1:]) and bool(rows.any())

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the width of the squares: by default the smaller side, as in Gram matrices."""
        return min(shape)


class MatrixwiseMerge(Matrixwise, TensorwiseAlgorithm[ConfigT]):
    """base + scale * (`combine` of a matrix's task vectors, or the mean for other tensors)."""

    @property
    def scale(self) -> float:
        """Factor of the merged task vector: the option, or 1 for methods without one."""
        return self.config.scale if isinstance(self.config, ScaleConfig) else 1.0

    @abstractmethod
    def combine(self, rows: Tensor) -> Tensor:
        """Return one task vector (m, n) for the experts' (experts, m, n)."""

    def merge(self, piece: Piece) -> Tensor:
        """Merge one tensor."""
        rows = piece.task_vectors
        combined = self.combine(rows) if self.decomposes(rows) else mean(rows)
        return combined.mul(self.scale).add_(piece.base)


def mean(rows: Tensor) -> Tensor:
    """Return the mean over the first dimension, summed in its order."""
    return sum_in_order(rows) / len(rows)


def zero_rounding(responses: Tensor, norms: Tensor, dim: int = -1) -> Tensor:
    """Zero the directions in which an expert's response is rounding, in place; return the tensor.

    `responses` has shape (experts, ., .), a response runs along `dim`, and `norms` has shape
    (experts,). Rounding is what is below 1e-6 of the expert's norm.
    """
    lengths = torch.linalg.vector_norm(responses, dim=dim, keepdim=True)
    return responses.masked_fill_(lengths <= norms[:, None, None] * ROUNDING, 0)
