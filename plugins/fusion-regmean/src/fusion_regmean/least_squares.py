"""Least squares over the inputs of a linear layer, from sums over experts.

Sums are in fp64: solving would multiply an error of fp32 by the condition number of the moments,
1e5 and more in a transformer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_adapting import Moments


class LeastSquares:
    """The linear layer nearest to all experts' layers on the inputs of each.

    It minimises the sum over experts of tr((W - W_k) G_k (W - W_k)'). It holds the sum of G_k, of
    shape (inputs, inputs), and of W_k G_k, of shape (outputs, inputs), and no single expert.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        """Accept weights of this one's shape, with inputs along dimension `dim`."""
        self._dim = dim
        self._dtype = weight.dtype
        self._gram = torch.zeros((weight.shape[dim],) * 2, dtype=torch.float64)
        self._product = torch.zeros_like(self._turn(weight), dtype=torch.float64)

    def add(self, weight: Tensor, moment: Tensor, cross: Tensor | None = None) -> None:
        """Add one expert's weight and moment G_k, of shape (inputs, inputs) and in fp64.

        If the answer to x is W_k x' for the expert's own inputs x', `cross` is E[x' x^T].
        """
        self._dtype = torch.promote_types(self._dtype, weight.dtype)
        self._gram += moment
        self._product.addmm_(self._turn(weight).double(), moment if cross is None else cross)

    def solve(self, name: str, ridge: float) -> Tensor:
        """Return the weight; raises `FusionError` if the inputs do not determine it.

        `ridge` is the option by which the moments were raised, for the error.
        """
        factor, failed = torch.linalg.cholesky_ex(self._gram)
        if failed:
            raise FusionError(
                f"the inputs of {name!r} do not determine its weight",
                hint=f"Use more samples, or a larger ridge than {ridge:g}: "
                f"--set algorithm.ridge={max(100 * ridge, 1e-6):g}",
            )
        solved = torch.cholesky_solve(self._product.mT, factor).mT
        return self._turn(solved).to(self._dtype).contiguous()

    def solve_smallest(self) -> Tensor:
        """Return the smallest minimising weight: zero for inputs that no expert gets.

        Eigenvalues of the moments below their width times the precision of fp32 count as zero.
        """
        rtol = len(self._gram) * torch.finfo(torch.float32).eps
        solved = self._product @ torch.linalg.pinv(self._gram, rtol=rtol, hermitian=True)
        return self._turn(solved).to(self._dtype).contiguous()

    def _turn(self, weight: Tensor) -> Tensor:
        """Transpose a weight so that inputs are its last dimension, or back."""
        return weight if self._dim == 1 else weight.mT


def moment_of(moments: Moments, *, off_diagonal: float, ridge: float) -> Tensor:
    """Return E[x x'] in fp64, with scaled off-diagonal entries and a ridge on the diagonal."""
    mean = moments.mean.cpu().double()
    diagonal = mean.diagonal()
    return (mean * off_diagonal).diagonal_scatter(diagonal + ridge * diagonal.mean())
