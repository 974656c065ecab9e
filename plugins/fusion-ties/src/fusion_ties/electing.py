"""Methods that choose entry by entry from all experts: MagMax, and the consensus of TALL masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, TensorwiseAlgorithm
from fusion_core.errors import RecipeError
from fusion_core.weights import Kernel, Piece, RowsKernel, in_order
from fusion_ties.config import ConsensusConfig, MagMaxConfig

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource


class MagMax(TensorwiseAlgorithm[MagMaxConfig]):
    """base + scale * the task-vector entry of largest magnitude (MagMax, arXiv:2407.06322).

    Where magnitudes are equal and signs differ it is the positive entry, so that the order of the
    experts does not matter; the authors' code takes the last expert's. The default scale is that of
    their script for eight tasks. Shapes: any. No data; one pass.
    """

    config_class = MagMaxConfig

    def merge(self, piece: Piece) -> Tensor:
        """Choose, element by element."""
        highest, lowest = piece.task_vectors.amax(0), piece.task_vectors.amin(0)
        chosen = highest.where(highest >= -lowest, lowest)
        return chosen.mul_(self.config.scale).add_(piece.base)


class Consensus(Algorithm[ConsensusConfig]):
    """base + scale * the summed task vectors where enough experts need them (arXiv:2405.07813).

    With S the sum of the task vectors, an entry is in expert k's TALL mask if |tau_k| >=
    tall_lambda * |S - tau_k|, as in the paper; the authors' code has >, which differs where both
    sides are zero. Entries in fewer than `k` masks are zeroed: with k = 1 those that no expert
    needs, with 2 also those that one alone does.

    With `task_masks` the masks are beside the model, one bit an entry and expert, and the weights
    for expert k's task, `fusion_core.load_for_task(directory, task)`, are base + mask_k * S, as in
    the paper whatever `scale` is: the masks' own is 1 / scale.

    The authors choose lambda for each task, of 0.2 to 0.6, by accuracy on labelled validation
    examples, and `scale` likewise; here each is one number. Shapes: any. No data; one pass, and
    one more for the masks.
    """

    config_class = ConsensusConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge; raises `RecipeError` if no entry can be in enough masks."""
        config, count = self.config, len(pool.experts)
        if config.fewest > count:
            raise RecipeError(
                f"algorithm.k is {config.fewest}, and no entry can be in the masks of more than "
                f"{count} expert(s): nothing would be merged",
                hint=f"Set algorithm.k to {count} at most.",
            )
        if config.task_masks:
            masks = context.transformed(pool, TallMasks(config.tall_lambda)).experts
            context.save_task_masks(masks, dict.fromkeys(masks, 1 / config.scale))
        return context.merged(pool, Agreed(config.fewest, config.tall_lambda, config.scale))


@dataclass(frozen=True)
class Agreed(Kernel):
    """base + scale * the sum of the task vectors where at least `k` TALL masks have it."""

    pieces_held = (3, 4.25)

    k: int
    tall_lambda: float
    scale: float

    def merge(self, piece: Piece) -> Tensor:
        """Mask the sum of one piece."""
        total = in_order(piece.task_vectors)
        needed = _needed(piece.task_vectors, total, self.tall_lambda)
        return total.where(needed.sum(0) >= self.k, 0).mul_(self.scale).add_(piece.base)


@dataclass(frozen=True)
class TallMasks(RowsKernel):
    """1 where an entry is in an expert's TALL mask, and 0 elsewhere."""

    tall_lambda: float

    def rows(self, piece: Piece) -> Tensor:
        """Mask one piece."""
        rows = piece.task_vectors
        return _needed(rows, in_order(rows), self.tall_lambda).to(rows)


def _needed(rows: Tensor, total: Tensor, tall_lambda: float) -> Tensor:
    """Tell which entries are in which expert's TALL mask."""
    return rows.abs() >= (total - rows).abs_().mul_(tall_lambda)
