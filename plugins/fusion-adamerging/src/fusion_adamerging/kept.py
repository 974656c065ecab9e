"""Methods whose coefficients are all that they find: learned, or those of an earlier run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fusion_adamerging.coefficient_search import (
    COEFFICIENTS,
    CoefficientSearch,
    LearnedT,
    merged_shapes,
)
from fusion_adamerging.coefficients import Coefficients
from fusion_adamerging.config import KeptConfig
from fusion_core.errors import IntegrityError
from fusion_core.files import write_durably
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import MergedSource, WeightSource

KeptT = TypeVar("KeptT", bound=KeptConfig)


class KeptCoefficients(CoefficientSearch[KeptT, LearnedT]):
    """A linear merge, with coefficients that a search finds or a file holds."""

    def held_memory(self, model: int, experts: int) -> int:
        """Count nothing where the coefficients are given: no model is live then."""
        return super().held_memory(model, experts) if self.config.coefficients is None else 0

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search (or load) the coefficients; the merge itself stays lazy."""
        experts = list(pool.experts)
        merged = context.merged_matrices(pool, Linear((self.config.init,) * len(experts)))
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
