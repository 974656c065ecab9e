"""Methods that choose entry by entry from all experts: MagMax, and the consensus of TALL masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Algorithm, TensorwiseAlgorithm
from fusion_core.errors import RecipeError
from fusion_core.weights import Kernel, Piece, in_order
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
    needs, with 2 also those that one alone does. The authors choose lambda for each task on
    labelled examples; here it is one number. Shapes: any. No data; one pass.
    """

    config_class = ConsensusConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy merge; raises `RecipeError` if no entry can be in enough masks."""
        config, count = self.config, len(pool.experts)
        if config.k > count:
            raise RecipeError(
                f"algorithm.k is {config.k}, and no entry can be in the masks of more than "
                f"{count} expert(s): nothing would be merged",
                hint=f"Set algorithm.k to {count} at most.",
            )
        return context.merged(pool, Agreed(config.k, config.tall_lambda, config.scale))


@dataclass(frozen=True)
class Agreed(Kernel):
    """base + scale * the sum of the task vectors where at least `k` TALL masks have it."""

    k: int
    tall_lambda: float
    scale: float

    def merge(self, piece: Piece) -> Tensor:
        """Mask the sum of one piece."""
        rows = piece.task_vectors
        total = in_order(rows)
        needed = rows.abs() >= (total - rows).abs_().mul_(self.tall_lambda)
        return total.where(needed.sum(0) >= self.k, 0).mul_(self.scale).add_(piece.base)
