"""Orthogonal matching pursuit: many vectors as sparse combinations of the same atoms.

A target is approximated greedily (Pati et al., 1993): take the atom that correlates most with the
residual, fit all chosen atoms by least squares, repeat. The fit uses a Cholesky factor of the
chosen atoms' Gram matrix that grows by one row per step, as in Batch-OMP (Rubinstein, Zibulevsky
and Elad, 2008), so that no least-squares problem is solved from scratch. Batch-OMP also keeps the
Gram matrix of all atoms, which would take 40 GB for 100,000 tokens. Here the correlations come from
the residuals instead, by one matrix product per step and batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Elements of the largest intermediate result of a batch: 128 MB in fp32.
_ELEMENTS = 2**25
#: An atom is dependent on the chosen ones if less than this share of its square is new.
_INDEPENDENT = 1e-6


@dataclass(frozen=True)
class Pursuit:
    """The sparse coding of targets by at most `k` of the atoms.

    `atoms` has the shape (atoms, width), in fp32 or fp64. Targets do not affect each other, but a
    matrix product may round differently in a batch of another size.
    """

    atoms: Tensor
    k: int

    @property
    def batch_size(self) -> int:
        """The number of targets whose intermediate results stay within the limit of memory."""
        count, width = self.atoms.shape
        return max(1, _ELEMENTS // (count + self.k * width))

    def __call__(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen atoms and their coefficients, each of shape (targets, k).

        `targets` has the shape (targets, width) and the dtype of the atoms. The coefficients are
        fp64. A target that needs fewer atoms, because the next one would add nothing, has
        coefficients of zero for the rest.
        """
        count = len(targets)
        chosen = torch.zeros(count, self.k, dtype=torch.long)
        picked = self.atoms.new_zeros(count, self.k, self.atoms.shape[1])
        factor = torch.zeros(count, self.k, self.k, dtype=torch.float64)
        solved = torch.zeros(count, self.k, dtype=torch.float64)  # factor @ solved = products
        coefficients = torch.zeros(count, self.k, dtype=torch.float64)
        residuals = targets
        is_active = torch.ones(count, dtype=torch.bool)
        for step in range(self.k):
            is_active &= ~_is_negligible(residuals, targets)
            if not is_active.any():
                break
            correlations = (residuals @ self.atoms.T).abs_()
            correlations.scatter_(1, chosen[:, :step], -1)
            chosen[:, step] = correlations.argmax(1)
            atoms = self.atoms[chosen[:, step]]
            projected, pivot = _extend(factor, picked, atoms, step)
            is_active &= pivot > 0
            # A finished target takes a zero atom, which leaves its fit as it is.
            atoms[~is_active] = 0
            factor[:, step, :step] = projected * is_active[:, None]
            factor[:, step, step] = torch.where(is_active, pivot, 1.0)
            picked[:, step] = atoms
            product = (atoms.double() * targets.double()).sum(1)
            known = (factor[:, step, :step] * solved[:, :step]).sum(1)
            solved[:, step] = (product - known) / factor[:, step, step]
            lower = factor[:, : step + 1, : step + 1]
            coefficients = _solve(lower.transpose(1, 2), solved[:, : step + 1], upper=True)
            fit = torch.bmm(coefficients[:, None].to(targets.dtype), picked[:, : step + 1])
            residuals = targets - fit[:, 0]
        missing = self.k - coefficients.shape[1]
        return chosen, torch.nn.functional.pad(coefficients, (0, missing))


def _is_negligible(residuals: Tensor, targets: Tensor) -> Tensor:
    """Tell which targets are represented as exactly as their dtype can."""
    bound = 4 * torch.finfo(targets.dtype).eps * targets.square().sum(1).sqrt()
    return residuals.square().sum(1).sqrt() <= bound


def _extend(factor: Tensor, picked: Tensor, atoms: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the next row of each Cholesky factor, and its pivot; 0 for a dependent atom."""
    squares = atoms.double().square().sum(1)
    products = torch.bmm(picked[:, :step], atoms[:, :, None]).double()
    projected = _solve(factor[:, :step, :step], products[:, :, 0], upper=False)
    rest = squares - projected.square().sum(1)
    is_new = rest > _INDEPENDENT * squares
    return projected, torch.where(is_new, rest.clamp(min=0).sqrt(), 0.0)


def _solve(factor: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    """Solve triangular systems, one right side each."""
    solution: Tensor = torch.linalg.solve_triangular(factor, right[:, :, None], upper=upper)
    return solution[:, :, 0]
