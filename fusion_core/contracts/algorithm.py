"""How models are fused: the class that methods subclass.

An algorithm decides; the engine moves bytes. `run` returns a lazy `WeightSource` (or a live module,
if the method makes one), and the caller reads, writes or evaluates it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, overload

import fusion_core  # whose `merge` plans and applies a method that is called without a context
from fusion_core.contracts.outline import Outline
from fusion_core.contracts.result import checked_source
from fusion_core.contracts.stage import Stage, weights_of
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import Kernel, WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.flow import Flow
    from fusion_core.contracts.model_pool import ModelPool

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class Algorithm(Stage[ConfigT]):
    """A way of fusing models: a configuration or its options as keywords, and `run`.

    class PickFirst(Algorithm[PickFirstConfig]):
        config_class = PickFirstConfig

        def run(self, pool, context):
            return next(iter(pool.experts.values()))

    A method that computes each tensor from the same tensor of every model, which is most methods,
    is a `TensorwiseAlgorithm` and writes `merge` instead.

    A run calls `run` with a context. Whoever calls `PickFirst().run(models)` without one gives a
    pool or `{"base": ..., "models": {...}}`, and gets the merge that a run would write: planned and
    checked alike, lazy, in the base's dtypes.
    """

    kind = "merge"

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - the class statement's
        super().__init_subclass__(**options)
        if "run" in vars(cls):
            cls.run = _or_by_hand(cls.run)  # type: ignore[method-assign]

    @abstractmethod
    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource | nn.Module:
        """Fuse the pool's models.

        The pool is aligned: every expert has the base's keys and shapes. Sources must not be
        modified. Raise a `FusionError` for what the user can mend.
        """

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Return the flow with the models merged into weights, checked as the engine's results."""
        pool = flow.models
        merged = checked_source(self.run(pool, context), self.outline(pool), pool, context)
        return replace(flow, merged=flow.restore(merged))

    def outline(self, pool: ModelPool[Any]) -> Outline:
        """Say from headers what `run` will return; default: the tensors that the models have.

        Asked before any work is done, so that a run with a result of other tensors is planned,
        checked and described like any other. The pool is aligned. Raise a `FusionError` for what
        the user can mend.
        """
        return Outline(pool.reference.infos)


def _or_by_hand(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method's `run` be called without a context too."""

    @wraps(run)
    def run_or_merge(self: Algorithm[Any], pool: Any, context: RunContext | None = None) -> Any:  # noqa: ANN401
        if context is None:
            return fusion_core.merge(self, pool)
        return run(self, pool, context)

    return run_or_merge


class TensorwiseAlgorithm(Algorithm[ConfigT], Kernel):
    """A method that merges tensor by tensor, piece by piece: write `merge`, and `survey` if needed.

    class DropAndAverage(TensorwiseAlgorithm[DropConfig]):
        config_class = DropConfig

        def merge(self, piece):
            deltas = piece.task_vectors
            kept = deltas.where(deltas.abs() > self.config.floor, 0)
            return piece.base + in_order(kept) / len(kept)

    `cut` says how finely tensors may be cut for `merge` (default: between any two elements),
    `scope` what `survey` looks at first (default: nothing). Both are properties, and may depend on
    the options. A configuration with a field `weights: ExpertWeights` gives each expert its factor
    in `piece.weights`.
    """

    @overload
    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource: ...
    @overload
    def run(self, pool: ModelPool[Any] | Mapping[str, Any]) -> WeightSource: ...
    def run(self, pool: Any, context: Any = None) -> WeightSource:
        """Return the lazy merge; the engine calls `survey` and `merge` when it is read."""
        merged: WeightSource = context.merged(pool, self, weights=weights_of(self, pool))
        return merged
