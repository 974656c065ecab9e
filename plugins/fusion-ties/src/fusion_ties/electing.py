"""Methods that choose among the experts' entries: MagMax, and the consensus of TALL masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, TensorwiseAlgorithm, expert_values
from fusion_core.errors import RecipeError
from fusion_core.weights import Kernel, Linear, Piece, RowsKernel, sum_in_order
from fusion_ties.config import ConsensusConfig, MagMaxConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class MagMax(TensorwiseAlgorithm[MagMaxConfig]):
    """Take the entry of largest magnitude from all task vectors (MagMax, arXiv:2407.06322).

    Formula: base + scale * the tau_k of largest |tau_k|, entry by entry. Of equal magnitudes with
    different signs, the positive entry wins, so the order of the experts does not matter. The
    authors' code takes the last expert's.
    Options: `scale` (factor; 0.5, as in the authors' script for eight tasks).
    Shapes: any. Data: none. Cost: one pass.
    """

    config_class = MagMaxConfig

    @property
    def is_bounded(self) -> bool:
        """Whether the scale does not enlarge the entries that it chooses."""
        return abs(self.config.scale) <= 1

    def merge(self, piece: Piece) -> Tensor:
        """Choose the entries of one piece."""
        highest, lowest = piece.task_vectors.amax(0), piece.task_vectors.amin(0)
        largest = highest.where(highest >= -lowest, lowest).add_(0)  # so that zero has one sign
        return largest.mul_(self.config.scale).add_(piece.base)


class Consensus(Algorithm[ConsensusConfig]):
    """Sum task vectors where the TALL masks of enough experts agree (arXiv:2405.07813).

    Formula: base + scale * S where at least k masks have the entry, else base, with S the sum of
    the task vectors. Expert k's TALL mask has the entries with |tau_k| >= tall_lambda *
    |S - tau_k|, as in the paper. The authors' code has >, which differs where both sides are zero.
    Options: `k` (masks; 2, or 1 with `task_masks`), `tall_lambda` (ratio; 0.4), `scale` (factor;
    0.3), `task_masks` (false). The authors choose one lambda per task, from 0.2 to 0.6, and `scale`
    by accuracy on labelled validation examples.

    With `task_masks` the masks are saved with the model, at one bit per entry and expert.
    `fusion_core.load_for_task(directory, task)` then gives base + mask_k * S, as in the paper,
    whatever `scale` is.
    Shapes: any. Data: none. Cost: one pass, and one more for the masks.
    """

    config_class = ConsensusConfig

    @property
    def saves_task_masks(self) -> bool:
        """Whether the masks are saved with the model."""
        return self.config.task_masks

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge; raises `RecipeError` if `k` exceeds the number of experts."""
        config, count = self.config, len(pool.experts)
        if config.min_masks > count:
            raise RecipeError(
                f"algorithm.k is {config.min_masks}, but there are only {count} expert(s): no "
                "entry would be merged",
                hint=f"Set algorithm.k to at most {count}.",
            )
        lambdas = expert_values(config.tall_lambda, [*pool.experts], "tall_lambda")
        if config.task_masks:
            masks = context.transform(pool, TallMasks(lambdas)).experts
            context.save_task_masks(masks, dict.fromkeys(masks, 1 / config.scale))
        kernel = ConsensusSum(config.min_masks, lambdas, config.scale)
        return context.merge(pool, kernel)


@dataclass(frozen=True)
class ConsensusSum(Kernel):
    """base + scale * the sum of the task vectors where at least `k` TALL masks have the entry."""

    pieces_held = (3, 4.25)

    k: int
    lambdas: tuple[float, ...]
    scale: float

    @property
    def is_bounded(self) -> bool:
        """Whether the sum is bounded; leaving out entries does not change that."""
        return Linear((self.scale,) * len(self.lambdas)).is_bounded

    def merge(self, piece: Piece) -> Tensor:
        """Sum and mask one piece."""
        total = sum_in_order(piece.task_vectors)
        masks = _tall_masks(piece.task_vectors, total, self.lambdas)
        return total.where(masks.sum(0) >= self.k, 0).mul_(self.scale).add_(piece.base)


@dataclass(frozen=True)
class TallMasks(RowsKernel):
    """The TALL masks of all experts, as ones and zeros."""

    lambdas: tuple[float, ...]
    is_bounded = True  # a mask has a scale of its own

    def rows(self, piece: Piece) -> Tensor:
        """Return the masks of one piece."""
        rows = piece.task_vectors
        return _tall_masks(rows, sum_in_order(rows), self.lambdas).to(rows)


def _tall_masks(rows: Tensor, total: Tensor, lambdas: tuple[float, ...]) -> Tensor:
    others = (total - rows).abs_()
    for row, tall_lambda in zip(others, lambdas, strict=True):
        row.mul_(tall_lambda)
    return rows.abs() >= others
