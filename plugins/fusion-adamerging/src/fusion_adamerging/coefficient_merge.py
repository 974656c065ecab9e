"""Linear merges whose coefficients a search finds or a file of an earlier run provides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fusion_adamerging.coefficient_search import (
    COEFFICIENTS,
    CoefficientSearch,
    LearnedT,
    is_transductive,
    merged_shapes,
)
from fusion_adamerging.coefficients import Coefficients
from fusion_adamerging.config import CoefficientMergeConfig
from fusion_core.errors import IntegrityError
from fusion_core.files import write_durably
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ModelPool, RunContext
    from fusion_core.weights import WeightSource

MergeConfigT = TypeVar("MergeConfigT", bound=CoefficientMergeConfig)


class CoefficientMerge(CoefficientSearch[MergeConfigT, LearnedT]):
    """A linear merge that its coefficients determine completely."""

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Count nothing if the coefficients are given, because then no model is live."""
        return super().held_memory(model, pool) if self.config.coefficients is None else 0

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search or load the coefficients, and return the lazy merge."""
        experts = list(pool.experts)
        merged = context.merge_matrices(pool, Linear((self.config.init,) * len(experts)))
        path = self.config.coefficients
        if path is None:
            coefficients, _ = self.search(pool, merged, context)
        else:
            coefficients = Coefficients.load(path, experts=experts, shapes=merged_shapes(merged))
            options = self.learning_options([], context)
            coefficients.check_fits(path, options, saw_tests=is_transductive(context))
        files = coefficients.files(COEFFICIENTS)
        _check_resumed(files[COEFFICIENTS], context.state)
        for name, content in files.items():
            context.save(name, content)
        return context.merge(pool, Linear(coefficients.by_tensor(experts)))


def _check_resumed(content: bytes, state: Path | None) -> None:
    """Store the coefficients for a resumed run; raise `IntegrityError` if they have changed.

    The shards that the stopped run wrote were merged with the stored coefficients.
    """
    if state is None:
        return
    path = state / COEFFICIENTS
    if path.is_file() and path.read_bytes() != content:
        raise IntegrityError(
            "the coefficients differ from those that the stopped run merged with",
            hint="Restore the content of algorithm.coefficients, or run without --resume.",
        )
    write_durably(path, content, parents=True)
