"""KnOTS (arXiv:2410.19735): TIES in coordinates of a basis that the experts share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Cut, Piece
from fusion_core.weights import Kernel, RowsKernel, Scope, Trim, agreeing, in_order
from fusion_spectral.config import KnotsConfig
from fusion_spectral.decomposition import Components, decompose, is_matrix
from fusion_spectral.matrixwise import mean

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, Scan, WeightSource

_COORDINATES = "coordinates"


class Knots(Algorithm[KnotsConfig]):
    """base + scale * U (TIES of the coordinates S V_k'), where U S [V_1' ... V_K'] = [tau_1 ...].

    The experts' task vectors of a matrix (out, in) side by side have one decomposition; its left
    vectors are a basis for all of them. In coordinates, TIES keeps each expert's `density` largest
    entries over all matrices of the model, elects signs and takes the mean of what agrees; the
    result goes back through U. Meant for LoRA, whose rank limits the basis: directions in which
    nobody moved (1e-6 of the largest; the authors' code: 1e-5, whatever the scale) count neither as
    entries nor as kept. As the authors' configuration `ties`, `mean`, with their best scale of 0.6
    not taken as the default. Everything else is averaged, and scaled, too. Data: none. Cost: an
    eigendecomposition of size (out, out) a matrix, in each of about six passes.
    """

    config_class = KnotsConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge: to coordinates, TIES, and back."""
        coordinates = context.transformed(pool, _ToCoordinates())
        merged = context.merged(coordinates, _TiesOfCoordinates(self.config.density))
        back = _FromCoordinates(self.config.scale)
        return context.merged(pool, back, extras={_COORDINATES: merged})


class _ToCoordinates(RowsKernel):
    """Each expert's coordinates, (m, n) as its task vector: rows past the basis are zero."""

    @property
    def cut(self) -> Cut:
        """Matrices are whole."""
        return Cut.TENSOR

    def rows(self, piece: Piece) -> Tensor:
        rows = piece.task_vectors
        if not is_matrix(piece.shape):
            return rows
        shared = _shared(rows)
        coordinates = torch.split(shared.values[:, None] * shared.right.mT, piece.shape[1], dim=1)
        found = torch.zeros_like(rows)
        found[:, : len(shared.values)] = torch.stack(coordinates)
        return found


@dataclass(frozen=True)
class _TiesOfCoordinates(Kernel):
    """The merged coordinates, of matrices; the mean of all else."""

    density: float

    @property
    def scope(self) -> Scope:
        """Thresholds are the whole model's."""
        return Scope.MODEL

    def survey(self, scan: Scan) -> Trim:
        """Find the thresholds over the entries of the bases."""
        matrices = replace(scan, infos=[info for info in scan.infos if is_matrix(info.shape)])
        entries = matrices(_entries_in_the_basis, int.__add__, 0)
        kept = int(self.density * entries) + 0.5  # halfway: safe from rounding
        return Trim.of(matrices, kept / max(matrices.numel, 1) if self.density else 0.0)

    def merge(self, piece: Piece) -> Tensor:
        if not is_matrix(piece.shape):
            return mean(piece.task_vectors)
        state: Trim = piece.state
        kept = state.kept(piece.task_vectors)
        sign = state.sign(kept)
        agree = agreeing(kept, sign)
        total = in_order(agree).mul_(sign)
        return total.div_(in_order(agree.sign_()).clamp_min_(1))


@dataclass(frozen=True)
class _FromCoordinates(Kernel):
    """base + scale * U (merged coordinates)."""

    scale: float

    @property
    def cut(self) -> Cut:
        """Matrices are whole."""
        return Cut.TENSOR

    def merge(self, piece: Piece) -> Tensor:
        moved = piece.extra(_COORDINATES)  # noqa: S610 - not Django's
        if is_matrix(piece.shape):
            left = _shared(piece.task_vectors).left
            moved = left @ moved[: left.shape[1]]
        return moved.mul(self.scale).add_(piece.base)


def _shared(rows: Tensor) -> Components:
    """Decompose the experts' matrices (experts, m, n) side by side."""
    return decompose(torch.cat(list(rows), dim=1))


def _entries_in_the_basis(piece: Piece) -> int:
    """Count the entries of one expert's coordinates whose direction somebody moved in."""
    moved = piece.task_vectors.ne(0).any(dim=2).any(dim=0)
    return int(moved.sum()) * piece.info.shape[1]
