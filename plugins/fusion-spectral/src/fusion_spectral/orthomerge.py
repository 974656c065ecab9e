"""Orthogonal model merging (arXiv:2602.05943): rotations of the base, and what is left over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, TensorwiseAlgorithm
from fusion_core.weights import in_order, is_matrix
from fusion_spectral.config import OrthomergeConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from torch import Tensor

#: Below this fraction of the largest, a singular value counts as zero, and a sum against its terms.
_ZERO = 1e-12


class Orthomerge(Matrixwise, TensorwiseAlgorithm[OrthomergeConfig]):
    """W0 R + residual_scale * (sum of W_k - W0 R_k): rotations merge in their Lie algebra.

    R_k is the rotation that brings a matrix's base W0 closest to the expert W_k (orthogonal
    Procrustes), Q_k = (R_k - I)(R_k + I)^-1 its Cayley transform, and R that of sum of Q_k, scaled
    to the mean norm of the Q_k. As the authors' code for fully fine-tuned experts (`G_TA`), with
    these differences: what is rotated is the smaller side, where Procrustes has one solution (the
    code always rotates inputs, arbitrarily in what the base maps to zero); reflections, which have
    no Cayley transform, are excluded as in Kabsch's algorithm; and residuals are averaged for any
    number of experts, as its 0.2 averages five. Everything else is averaged. Data: none. Cost: an
    SVD (a Gram matrix of W0' W_k would square its condition once more) and two solutions of the
    smaller side's size a matrix and expert, in fp64.
    """

    config_class = OrthomergeConfig
    pieces_held, squares = (10.5, 4.7), (6, 2.3)

    def merge(self, piece: Piece) -> Tensor:
        """Merge rotations and residuals."""
        scale = self.config.residual_scale
        scale = 1 / len(piece.names) if scale is None else scale
        if not is_matrix(piece.shape):
            return in_order(piece.task_vectors).mul_(scale).add_(piece.base)
        base, experts = piece.base.double(), piece.experts.double()
        if base.shape[0] < base.shape[1]:
            merged = _merged(base.mT, experts.mT, scale).mT
        else:
            merged = _merged(base, experts, scale)
        return merged.to(piece.base.dtype)


def _merged(base: Tensor, experts: Tensor, scale: float) -> Tensor:
    """Merge tall matrices, (m, n) and (experts, m, n)."""
    generators = [_generator(_rotation(base, expert)) for expert in experts]
    turned = zip(experts, generators, strict=True)
    residuals = in_order(expert - base @ _cayley(each) for expert, each in turned)
    return base @ _cayley(_combined(torch.stack(generators))) + scale * residuals


def _rotation(base: Tensor, expert: Tensor) -> Tensor:
    """Return the rotation R of shape (n, n) for which base @ R is closest to the expert."""
    left, values, right = torch.linalg.svd(base.mT @ expert)
    signs = (values > values[0] * _ZERO).to(values.dtype)
    signs[-1] *= torch.linalg.det(left @ right).sign()
    rotation: Tensor = (left * signs) @ right
    return rotation


def _generator(rotation: Tensor) -> Tensor:
    """Return the skew-symmetric matrix whose Cayley transform a rotation is."""
    eye = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    generator: Tensor = torch.linalg.solve(rotation + eye, rotation - eye)
    return (generator - generator.mT) / 2


def _cayley(generator: Tensor) -> Tensor:
    eye = torch.eye(len(generator), dtype=generator.dtype, device=generator.device)
    rotation: Tensor = torch.linalg.solve(eye - generator, eye + generator)
    return rotation


def _combined(generators: Tensor) -> Tensor:
    """Return the sum's direction with the mean of the norms; zero where they cancel."""
    total = in_order(generators)
    norm = torch.linalg.matrix_norm(total)
    level = torch.linalg.matrix_norm(generators).mean()
    return total * (level / norm) if norm > _ZERO * level else torch.zeros_like(total)
