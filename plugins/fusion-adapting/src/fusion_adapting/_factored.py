"""Task vectors of low rank, such as those of adapters, held as the factors of a product.

A coefficient per row scales a row of the left factor, and one per column a column of the right
factor. So neither the merge nor the gradient of the coefficients needs a whole task vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fusion_adapting._sharing import ByColumn, ByComponent, ByRow, ByTensor
from fusion_core.weights import find_few_components, is_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from fusion_adapting._sharing import Sharing
    from fusion_adapting._task_vectors import Resident, TaskVectors
    from fusion_core.weights import Components


def most_directions(shape: Sequence[int], experts: int) -> int:
    """Return the largest rank per expert with which all factors are smaller than the matrix."""
    return math.prod(shape) // (sum(shape) * experts)


def is_collected(factors: int, numel: int) -> bool:
    """Tell whether factors of so many elements are small enough for layers to collect gradients.

    Four products with factors take the place of one with the shape of the weight.
    """
    return 2 * factors <= numel


def factorise(vectors: Resident) -> TaskVectors:
    """Return one matrix's task vectors, those of low rank as factors.

    The rank is low if the factors of all experts would be smaller than the matrix with it.
    """
    sharing, shape = vectors.sharing, vectors.sharing.info.shape
    if not is_matrix(shape) or isinstance(sharing, ByComponent):
        return vectors
    matrices = vectors.rows.view(-1, *shape)
    most = most_directions(shape, len(matrices))
    by_expert = [find_few_components(matrix, most) for matrix in matrices]
    parts = [part for part in by_expert if part is not None]
    if not parts:
        return vectors
    factored = Factored.of(sharing, vectors.base, parts)
    if len(parts) == len(by_expert):
        return factored
    is_low = torch.tensor([part is not None for part in by_expert], device=matrices.device)
    return PartlyFactored(factored, replace(vectors, rows=vectors.rows[~is_low]), is_low)


@dataclass(frozen=True)
class Factored:
    """A matrix's task vectors as factors: that of expert k is left[:, owner == k] @ right[...]."""

    sharing: Sharing
    #: shape (elements,), in the dtype in which the base is stored if that is 16 bits wide
    base: Tensor
    #: shape (rows, directions of all experts)
    left: Tensor
    #: shape (directions of all experts, columns)
    right: Tensor
    #: the expert of each direction
    owner: Tensor
    experts: int
    storage = "factors"

    @classmethod
    def of(cls, sharing: Sharing, base: Tensor, parts: Sequence[Components]) -> Factored:
        """Return the task vectors that have these components."""
        owner = [number for number, part in enumerate(parts) for _ in range(part.rank)]
        owners = torch.tensor(owner, dtype=torch.long, device=base.device)
        left = torch.cat([part.left for part in parts], dim=1)
        right = torch.cat([(part.right * part.values).T for part in parts])
        return cls(sharing, base, left, right, owners, len(parts))

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Add the products of scaled factors to the base."""
        self.add(coefficients, out.copy_(self.base))

    def add(self, coefficients: Tensor, out: Tensor) -> None:
        """Add the products of scaled factors to `out`."""
        merged = out.view(self.sharing.info.shape)
        for left, right in self._scaled(coefficients[self.owner]):
            merged.addmm_(left, right)

    def project(self, gradient: Tensor) -> Tensor:
        """Project the gradient onto the rows and columns of each direction, and sum these."""
        matrix = gradient.view(self.sharing.info.shape)
        return self._project(lambda right: matrix @ right, lambda left: left @ matrix)

    def project_product(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Do the same for the gradient outputs.T @ inputs, without computing that product.

        That is the gradient of a linear layer's weight, if `outputs`, of shape (positions, rows),
        is that of its outputs. `inputs` has the shape (positions, columns).
        """
        return self._project(
            lambda right: outputs.T @ (inputs @ right.to(inputs.dtype)),
            lambda left: (left.to(outputs.dtype) @ outputs.T) @ inputs,
        )

    def _project(
        self, times: Callable[[Tensor], Tensor], times_left: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Project a gradient of which only the products with factors are known, from each side."""
        if isinstance(self.sharing, ByColumn):
            return self._project_columns(times_left)
        by_row = self._sum((times(self.right.T).to(self.left).mul_(self.left)).T)
        if isinstance(self.sharing, ByRow):
            return by_row
        if isinstance(self.sharing, ByTensor):
            return by_row.sum(dim=1, keepdim=True)
        return torch.cat([by_row, self._project_columns(times_left)], dim=1) / 2

    def _project_columns(self, times_left: Callable[[Tensor], Tensor]) -> Tensor:
        return self._sum(times_left(self.left.T).to(self.right).mul_(self.right))

    def _sum(self, directions: Tensor) -> Tensor:
        """Sum over each expert's directions: (directions, count) -> (experts, count)."""
        sums = directions.new_zeros(self.experts, directions.shape[1])
        return sums.index_add_(0, self.owner, directions)

    def _scaled(self, coefficients: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs of factors whose products add up to the merged task vector.

        `coefficients` are those of each direction's expert, of shape (directions, count).
        """
        if isinstance(self.sharing, ByColumn):
            yield self.left, self.right * coefficients
        elif isinstance(self.sharing, (ByRow, ByTensor)):
            yield self.left * coefficients.T, self.right
        else:
            by_row, by_column = torch.split(coefficients / 2, list(self.sharing.info.shape), dim=1)
            yield self.left * by_row.T, self.right
            yield self.left, self.right * by_column


@dataclass(frozen=True)
class PartlyFactored:
    """A matrix's task vectors, of which only some have low rank: a DoRA adapter's has not."""

    factored: Factored
    whole: Resident
    #: for each expert, whether its task vector is held as factors
    is_low: Tensor

    @property
    def sharing(self) -> Sharing:
        """Which elements share a coefficient."""
        return self.whole.sharing

    @property
    def storage(self) -> str:
        """How both are held."""
        return f"{self.factored.storage} and {self.whole.storage}"

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Add the whole task vectors to the base, then the products of scaled factors."""
        self.whole.merge(coefficients[~self.is_low], out)
        self.factored.add(coefficients[self.is_low], out)

    def project(self, gradient: Tensor) -> Tensor:
        """Project the gradient onto all task vectors, in the experts' order."""
        of_low, of_whole = self.factored.project(gradient), self.whole.project(gradient)
        projected = of_whole.new_empty(len(self.is_low), of_whole.shape[1])
        projected[self.is_low], projected[~self.is_low] = of_low, of_whole
        return projected
