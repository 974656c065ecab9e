"""The rows of a transplanted matrix, as copies and as sparse combinations of the model's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: The most rows of the model that are gathered at once.
_GATHERED = 4096


@dataclass(frozen=True)
class Combinations:
    """Sparse combinations of rows: row i is the sum of coefficients * rows over its entries.

    The entries of all rows are concatenated. Combination i has those from offsets[i] to
    offsets[i + 1]. A combination without entries is zero. With a center, the mean of the rows
    `center` completes each sum of coefficients to 1.
    """

    offsets: Tensor
    rows: Tensor
    coefficients: Tensor
    center: Tensor | None = None

    @classmethod
    def of(
        cls, entries: Sequence[tuple[Tensor, Tensor]], center: Tensor | None = None
    ) -> Combinations:
        """Join the rows and coefficients of each combination."""
        sizes = torch.tensor([0, *(len(rows) for rows, _ in entries)])
        rows = [rows for rows, _ in entries] or [torch.zeros(0, dtype=torch.long)]
        coefficients = [values.double() for _, values in entries] or [torch.zeros(0).double()]
        return cls(sizes.cumsum(0), torch.cat(rows), torch.cat(coefficients), center)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, matrix: Tensor, numbers: Tensor, center: Tensor) -> Tensor:
        """Return combinations by number, from the rows of a matrix, in the dtype of `center`.

        `center` is the mean of the matrix's rows that complete the sums.
        """
        result = torch.zeros(len(numbers), matrix.shape[1], dtype=center.dtype)
        for position, number in enumerate(numbers.tolist()):
            start, stop = self.offsets[number : number + 2].tolist()
            for first in range(start, stop, _GATHERED):
                part = slice(first, min(first + _GATHERED, stop))
                values = matrix[self.rows[part]].to(center.dtype)
                result[position] += self.coefficients[part].to(center.dtype) @ values
            if self.center is not None:
                result[position] += (1 - self.coefficients[start:stop].sum()) * center
        return result


@dataclass(frozen=True)
class RowPlan:
    """Where each row of a transplanted matrix comes from.

    Row i is the model's row copies[i]; or, if that is -1, the combination slots[i]; or, if both are
    -1, the mean of the model's rows.
    """

    copies: Tensor
    slots: Tensor
    combinations: Combinations

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.copies)

    def without_combinations(self) -> RowPlan:
        """Return the plan whose new rows are all the mean."""
        return RowPlan(self.copies, torch.full_like(self.slots, -1), self.combinations)


def mean_of(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of some rows of a matrix, in fp64."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), _GATHERED):
        total += matrix[rows[start : start + _GATHERED]].double().sum(0)
    return total / max(1, len(rows))
