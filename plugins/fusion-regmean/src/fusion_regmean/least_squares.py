"""Least squares over the inputs of a linear layer, from sums over experts.

Sums are in fp64: an error of fp32 would come back multiplied by the condition number of the
moments, 1e5 and more in a transformer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_adapting import Moments


class LeastSquares:
    """The layer that is nearest to all experts' on what each of them is given.

    Minimises the sum over experts of tr((W - W_k) G_k (W - W_k)^T). What is kept is the sum of G_k,
    of shape (inputs, inputs), and of W_k G_k, of shape (outputs, inputs), never one expert's.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        """Take weights of this one's shape; inputs run along its dimension `dim`."""
        self._dim = dim
        self._dtype = weight.dtype
        self._gram = torch.zeros((weight.shape[dim],) * 2, dtype=torch.float64)
        self._product = torch.zeros_like(self._turned(weight), dtype=torch.float64)

    def add(self, weight: Tensor, moment: Tensor, cross: Tensor | None = None) -> None:
        """Add one expert's weight and moment G_k, of shape (inputs, inputs) and in fp64.

        Where the expert is given inputs x' and not x, `cross` is E[x' x^T]: W x is wanted to be
        W_k x'.
        """
        self._dtype = torch.promote_types(self._dtype, weight.dtype)
        self._gram += moment
        self._product.addmm_(self._turned(weight).double(), moment if cross is None else cross)

    def solve(self, name: str) -> Tensor:
        """Return the weight; raises `FusionError` where the inputs do not determine it."""
        factor, failed = torch.linalg.cholesky_ex(self._gram)
        if failed:
            raise FusionError(
                f"the inputs of {name!r} do not determine its weight",
                hint="Give more samples, or a ridge: --set algorithm.ridge=1e-6",
            )
        solved = torch.cholesky_solve(self._product.mT, factor).mT
        return self._turned(solved).to(self._dtype).contiguous()

    def solve_smallest(self) -> Tensor:
        """Return the smallest weight that minimises it: zero where no expert is given anything.

        Eigenvalues of the moments below their width times the precision of fp32 count as none.
        """
        rtol = len(self._gram) * torch.finfo(torch.float32).eps
        solved = self._product @ torch.linalg.pinv(self._gram, rtol=rtol, hermitian=True)
        return self._turned(solved).to(self._dtype).contiguous()

    def _turned(self, weight: Tensor) -> Tensor:
        """Turn a weight so that inputs run along its last dimension, or back."""
        return weight if self._dim == 1 else weight.mT


def moment_of(moments: Moments, *, off_diagonal: float, ridge: float) -> Tensor:
    """Return E[x x^T] in fp64, shrunk beside the diagonal and with a share of its mean on it."""
    mean = moments.mean.cpu().double()
    diagonal = mean.diagonal()
    return (mean * off_diagonal).diagonal_scatter(diagonal + ridge * diagonal.mean())
