"""Orthogonal model merging (arXiv:2602.05943): rotations of the base, and residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core import Piece, TensorwiseAlgorithm
from fusion_core.errors import FusionError
from fusion_core.weights import sum_in_order
from fusion_spectral.config import OrthomergeConfig
from fusion_spectral.matrixwise import Matrixwise

if TYPE_CHECKING:
    from torch import Tensor

#: Below this fraction of the largest singular value, or of the mean norm, a number counts as zero.
_ZERO = 1e-12


class Orthomerge(Matrixwise, TensorwiseAlgorithm[OrthomergeConfig]):
    """Merge the experts' rotations of the base in their Lie algebra (arXiv:2602.05943).

    Formula: W0 R + residual_scale * sum of (W_k - W0 R_k) for the base W0 of a matrix. R_k is the
    rotation for which W0 R_k is nearest to the expert W_k (orthogonal Procrustes), and
    Q_k = (R_k - I)(R_k + I)^-1 its Cayley transform. R is the rotation whose Cayley transform is
    the sum of Q_k, scaled to their mean norm. All other task vectors are summed with
    `residual_scale`.
    Options: `residual_scale` (factor; 1 / experts, their mean).
    Source: arXiv:2602.05943, as in the authors' code for fully fine-tuned experts (`G_TA`).
    Differences: the smaller side is rotated, where Procrustes has one solution. The code always
    rotates inputs, arbitrarily where the base maps them to zero. Reflections have no Cayley
    transform and are excluded as in Kabsch's algorithm. Residuals are averaged for any number of
    experts, as the code's 0.2 does for five.
    Data: none. Cost: per matrix and expert an SVD (a Gram matrix of W0' W_k would square its
    condition once more) and two solves of the smaller side's size, in fp64.
    """

    config_class = OrthomergeConfig
    pieces_held, squares = (10.5, 4.7), (6, 2.3)

    def merge(self, piece: Piece) -> Tensor:
        """Merge rotations and residuals."""
        scale = self.config.residual_scale
        scale = 1 / len(piece.names) if scale is None else scale
        if not self.takes(piece.shape):
            return sum_in_order(piece.task_vectors).mul_(scale).add_(piece.base)
        base, experts = piece.base.double(), piece.experts.double()
        try:
            if base.shape[0] < base.shape[1]:
                merged = _merge_tall(base.mT, experts.mT, scale).mT
            else:
                merged = _merge_tall(base, experts, scale)
        except ZeroDivisionError as error:
            raise FusionError(
                f"{piece.info.name}: an expert turns the base by 180 degrees, and such a rotation "
                "has no Cayley transform",
                hint=f"Leave the tensor out: --set algorithm.skip={piece.info.name}",
            ) from error
        return merged.to(piece.base.dtype)


def _merge_tall(base: Tensor, experts: Tensor, scale: float) -> Tensor:
    """Merge matrices (m, n) and (experts, m, n) with m >= n."""
    generators = [_generator(_nearest_rotation(base, expert)) for expert in experts]
    residuals = sum_in_order(
        expert - base @ _cayley(generator)
        for expert, generator in zip(experts, generators, strict=True)
    )
    return base @ _cayley(_combine(torch.stack(generators))) + scale * residuals


def _nearest_rotation(base: Tensor, expert: Tensor) -> Tensor:
    """Return the rotation R of shape (n, n) for which base @ R is nearest to the expert."""
    left, values, right = torch.linalg.svd(base.mT @ expert)
    signs = (values > values[0] * _ZERO).to(values.dtype)
    signs[-1] *= torch.linalg.det(left @ right).sign()
    rotation: Tensor = (left * signs) @ right
    return rotation


def _generator(rotation: Tensor) -> Tensor:
    """Return the skew-symmetric matrix whose Cayley transform is a rotation.

    Raises `ZeroDivisionError` for a rotation by 180 degrees.
    """
    eye = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    generator, singular = torch.linalg.solve_ex(rotation + eye, rotation - eye)
    if singular:
        raise ZeroDivisionError
    skew: Tensor = (generator - generator.mT) / 2
    return skew


def _cayley(generator: Tensor) -> Tensor:
    eye = torch.eye(len(generator), dtype=generator.dtype, device=generator.device)
    rotation: Tensor = torch.linalg.solve(eye - generator, eye + generator)
    return rotation


def _combine(generators: Tensor) -> Tensor:
    """Return the sum, scaled to the mean norm; zero where the generators cancel."""
    total = sum_in_order(generators)
    norm = torch.linalg.matrix_norm(total)
    level = torch.linalg.matrix_norm(generators).mean()
    return total * (level / norm) if norm > _ZERO * level else torch.zeros_like(total)
