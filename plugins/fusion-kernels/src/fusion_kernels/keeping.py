"""Functions that keep some entries of task vectors, and the sums of magnitudes before and after."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from fusion_kernels.operands import TaskVectorFunction

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class KeepingFunction(TaskVectorFunction):
    """A function whose loop writes kept entries or, for a survey, sums of magnitudes."""

    @abstractmethod
    def run(self, function: Any, piece: Piece, chosen: int, sums: int) -> int:  # noqa: ANN401
        """Call the loop with one address that is not 0; return 0 if an operand is not finite."""

    def entries(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Return the kept entries of one piece, of the shape of its task vectors, and zeros."""
        chosen = torch.empty((len(piece.names), *piece.shape))
        return chosen if self.run(function, piece, chosen.data_ptr(), 0) else None

    def sums(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Return each expert's sums of magnitudes before and after, of shape (2, experts)."""
        sums = torch.zeros((2, len(piece.names)), dtype=torch.float64)
        return sums if self.run(function, piece, 0, sums.data_ptr()) else None
