"""AdaMerging (arXiv:2310.02575): coefficients learned without labels, on examples of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adamerging.coefficient_search import COEFFICIENTS, CoefficientSearch, merged_shapes
from fusion_adamerging.coefficients import Coefficients
from fusion_adamerging.config import AdaMergingConfig
from fusion_core import write_durably
from fusion_core.errors import IntegrityError
from fusion_core.weights import Electing, Linear, Trimming

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import MergedSource


class AdaMerging(CoefficientSearch[AdaMergingConfig]):
    """base + sum over experts of lambda_kl * task vector, the lambdas learned from unlabeled data.

    Minimises the sum over tasks of the mean entropy of the merged model's predictions (or of their
    distance from each expert's), with Adam (betas 0.9, 0.999). A *layer* is one parameter tensor,
    by its canonical name; coefficients may be finer, one an output row, input column or singular
    component of each matrix. Floating-point tensors that are not parameters (running statistics)
    and parameters that no expert changed keep the coefficient `init`. Ends in the same lazy linear
    combination as task arithmetic. Raises `FusionError` where the search diverges or collapses, the
    last good coefficients then being kept beside the output.
    """

    config_class = AdaMergingConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> MergedSource:
        """Search (or load) the coefficients; the merge itself stays lazy."""
        experts = list(pool.experts)
        if self.config.trim:
            pool = context.transformed(pool, Trimming(self.config.density))
            pool = context.transformed(pool, Electing())
        merged = context.merged(pool, Linear((self.config.init,) * len(experts)))
        if self.config.coefficients is None:
            found, _ = self.searched(pool, merged, context)
        else:
            found = self._loaded(self.config.coefficients, experts, merged, context)
        files = found.files(COEFFICIENTS)
        _check_still(files[COEFFICIENTS], context.state)
        for name, content in files.items():
            context.save(name, content)
        return context.merged(pool, Linear(found.by_tensor(experts)))

    def _loaded(
        self, path: str, experts: Sequence[str], merged: MergedSource, context: RunContext
    ) -> Coefficients:
        found = Coefficients.load(path, experts=experts, shapes=merged_shapes(merged))
        found.check_fits(path, self.learning([], context))
        return found


def _check_still(content: bytes, state: Path | None) -> None:
    """Keep the coefficients for a run that goes on; raises `IntegrityError` if they have changed.

    What that run has written already was merged with those.
    """
    if state is None:
        return
    kept = state / COEFFICIENTS
    if kept.is_file() and kept.read_bytes() != content:
        raise IntegrityError(
            "the coefficients are not those that the stopped run has merged with",
            hint="Give algorithm.coefficients the same content, or leave --resume out.",
        )
    write_durably(kept, content, parents=True)
