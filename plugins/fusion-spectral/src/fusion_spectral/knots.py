"""KnOTS (arXiv:2410.19735): TIES in coordinates of a basis that the experts share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, Piece, expert_values
from fusion_core.weights import Kernel, Scope, is_matrix, sum_in_order
from fusion_spectral.config import KnotsConfig
from fusion_spectral.core_space import CoreSpace
from fusion_spectral.matrixwise import ForMatrices, mean
from fusion_thresholds import TrimSurvey, agreeing_magnitudes

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext, Scan, WeightSource


class Knots(ForMatrices, Algorithm[KnotsConfig]):
    """Merge by TIES in coordinates of a basis that the experts share; for LoRA (arXiv:2410.19735).

    Formula: base + scale * U ties(S V_1', ..., S V_K'), where U S [V_1' ... V_K'] decomposes the
    task vectors [tau_1 ... tau_K] of a matrix (out, in), joined by columns. TIES keeps each
    expert's `density` largest coordinates over all matrices of the model, elects signs, and
    averages the entries that agree. All other tensors are averaged, and scaled too.
    Options: `density` (fraction of coordinates; 0.2), `scale` (factor; 1.0).
    Source: arXiv:2410.19735, with the authors' configuration `ties`, `mean`, but without their best
    scale of 0.6. Directions in which no expert moved (below 1e-6 of the largest; in the authors'
    code below 1e-5, absolute) do not count as entries.
    Data: none. Cost: an eigendecomposition of size (out, out) per matrix, in each of about six
    passes.
    """

    config_class = KnotsConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge: to coordinates, TIES, and back."""
        space = CoreSpace(bases="left")
        coordinates = context.transform(pool, space)
        densities = expert_values(self.config.density, [*pool.experts], "density")
        ties = _CoordinateTies(densities, self.config.scale)
        return context.restore(context.merge(coordinates, ties), pool, space)


@dataclass(frozen=True)
class _CoordinateTies(Kernel):
    """scale * the TIES merge of a matrix's coordinates, or scale * the mean of another tensor."""

    densities: tuple[float, ...]
    scale: float

    scope = Scope.MODEL  # thresholds are over all matrices

    def survey(self, scan: Scan) -> TrimSurvey:
        """Return the thresholds over the entries in the bases."""
        matrices = replace(scan, infos=[info for info in scan.infos if is_matrix(info.shape)])
        entries = matrices(_count_entries, int.__add__, 0)
        size = max(matrices.numel, 1)
        # A count halfway between integers is safe from rounding.
        densities = [
            (int(density * entries) + 0.5) / size if density else 0.0 for density in self.densities
        ]
        return TrimSurvey.of(matrices, densities)

    def merge(self, piece: Piece) -> Tensor:
        if not is_matrix(piece.shape):
            return mean(piece.task_vectors).mul_(self.scale)
        state: TrimSurvey = piece.state
        rows = state.trim(piece.task_vectors)
        sign = state.sign(rows)
        agree = agreeing_magnitudes(rows, sign)
        total = sum_in_order(agree).mul_(sign)
        return total.div_(sum_in_order(agree.sign_()).clamp_min_(1)).mul_(self.scale)


def _count_entries(piece: Piece) -> int:
    """Count one expert's coordinates, in the directions in which some expert moved."""
    moved = piece.task_vectors.ne(0).any(dim=2).any(dim=0)
    return int(moved.sum()) * piece.info.shape[1]
