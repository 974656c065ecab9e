"""What merges of task vectors have in common that treat matrices one by one."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeVar

from fusion_core import ComponentConfig, Cut, Piece, TensorwiseAlgorithm
from fusion_core.weights import in_order, is_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import TensorInfo

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class ForMatrices:
    """A stage that applies to matrices alone, and says what becomes of all other tensors."""

    otherwise: ClassVar[str] = "averaged"

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that is not a matrix."""
        return None if is_matrix(info.shape) else self.otherwise


class Matrixwise(ForMatrices):
    """A stage that treats matrices one by one: no tensor is cut."""

    @property
    def cut(self) -> Cut:
        """Tensors are whole."""
        return Cut.TENSOR


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
