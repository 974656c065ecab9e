"""What merges of task vectors have in common that treat matrices one by one."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeVar

from fusion_core import ComponentConfig, Cut, Piece, TensorwiseAlgorithm
from fusion_core.weights import PieceKernel, in_order, is_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class Matrixwise(PieceKernel):
    """What treats matrices one by one: no tensor is cut.

    A worker holds at its peak some matrices of a tensor's shape, and squares as wide as one of its
    sides; numbers in fp64 count twice. Subclasses say how many, as counted with a few shapes and
    numbers of experts (`tests/test_memory.py`).
    """

    #: matrices of the tensor's shape, and as many more per expert
    matrices: ClassVar[tuple[float, float]]
    #: squares, and as many more per expert
    squares: ClassVar[tuple[float, float]]

    @property
    def cut(self) -> Cut:
        """Tensors are whole."""
        return Cut.TENSOR

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Count the matrices and squares."""
        if not is_matrix(shape):
            return super().working_memory(shape, experts)
        whole, square = (own + each * experts for own, each in (self.matrices, self.squares))
        return whole * math.prod(shape) + square * self.side(shape) ** 2

    @staticmethod
    def side(shape: Sequence[int]) -> int:
        """Return the width of the squares: the smaller side, as of Gram matrices."""
        return min(shape)


class MatrixwiseMerge(Matrixwise, TensorwiseAlgorithm[ConfigT]):
    """base + scale * (what `combine` makes of a matrix's task vectors; their mean elsewhere)."""

    @property
    def scale(self) -> float:
        """Lambda: the factor of the merged task vector."""
        return 1.0

    @abstractmethod
    def combine(self, rows: Tensor) -> Tensor:
        """Return one task vector (m, n) made of the experts' (experts, m, n)."""

    def merge(self, piece: Piece) -> Tensor:
        """Merge one tensor."""
        rows = piece.task_vectors
        combined = self.combine(rows) if is_matrix(piece.shape) else mean(rows)
        return combined.mul(self.scale).add_(piece.base)


def mean(rows: Tensor) -> Tensor:
    """Return the mean over the first dimension, summed in its order."""
    return in_order(rows) / len(rows)
