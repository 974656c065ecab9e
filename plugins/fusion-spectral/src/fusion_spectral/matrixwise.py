"""What merges of task vectors have in common that treat matrices one by one."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeVar

from fusion_core import ComponentConfig, Cut, Piece, TensorwiseAlgorithm
from fusion_core.weights import PieceKernel, in_order, is_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_core import TensorInfo

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class ForMatrices:
    """A stage that applies to matrices alone, and says what becomes of all other tensors."""

    otherwise: ClassVar[str] = "averaged"

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that is not a matrix."""
        return None if is_matrix(info.shape) else self.otherwise


class Matrixwise(ForMatrices, PieceKernel):
    """A stage that treats matrices one by one: no tensor is cut.

    Beside matrices of the tensor's shape (`pieces_held`) a worker holds squares as wide as one of
    its sides; numbers in fp64 count twice.
    """

    #: squares that a worker holds, and as many more per expert
    squares: ClassVar[tuple[float, float]]

    @property
    def cut(self) -> Cut:
        """Tensors are whole."""
        return Cut.TENSOR

    def working_memory(self, shape: Sequence[int], experts: int) -> float:
        """Count the matrices and, where there is one, the squares."""
        own, each = self.squares
        squares = (own + each * experts) * self.side(shape) ** 2 if is_matrix(shape) else 0
        return super().working_memory(shape, experts) + squares

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
