"""KnOTS (arXiv:2410.19735): TIES in coordinates of a basis that the experts share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, Piece
from fusion_core.weights import Kernel, Scope, Trim, agreeing, in_order, is_matrix
from fusion_spectral.config import KnotsConfig
from fusion_spectral.core_space import CoreSpace
from fusion_spectral.matrixwise import ForMatrices, mean

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, Scan, WeightSource


class Knots(ForMatrices, Algorithm[KnotsConfig]):
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
        space = CoreSpace(bases="left")
        coordinates = context.transformed(pool, space)
        ties = _TiesOfCoordinates(self.config.density, self.config.scale)
        return context.restored(context.merged(coordinates, ties), pool, space)


@dataclass(frozen=True)
class _TiesOfCoordinates(Kernel):
    """scale * (the merged coordinates, of matrices; the mean of all else)."""

    density: float
    scale: float

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
            return mean(piece.task_vectors).mul_(self.scale)
        state: Trim = piece.state
        kept = state.kept(piece.task_vectors)
        sign = state.sign(kept)
        agree = agreeing(kept, sign)
        total = in_order(agree).mul_(sign)
        return total.div_(in_order(agree.sign_()).clamp_min_(1)).mul_(self.scale)


def _entries_in_the_basis(piece: Piece) -> int:
    """Count the entries of one expert's coordinates whose direction somebody moved in."""
    moved = piece.task_vectors.ne(0).any(dim=2).any(dim=0)
    return int(moved.sum()) * piece.info.shape[1]
