"""Base classes of fusion methods: `Algorithm` and `TensorwiseAlgorithm`.

An algorithm decides how models are combined. The engine reads and writes the bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, overload

import fusion_core  # `fusion_core.merge` plans a method that is called without a context
from fusion_core.contracts.outline import Outline
from fusion_core.contracts.result import check_result
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
    """The base class of fusion methods that compute the merge themselves.

    Subclass `TensorwiseAlgorithm` instead if each merged tensor depends only on the same tensor of
    every model, as in most methods.

    A subclass sets `config_class` and implements `run`. A run creates the algorithm from its
    options, asks `outline` for the result's tensors while it plans, calls `run` once, and reads
    the returned source range by range while it writes the output. Example::

        from fusion_core import Algorithm, ComponentConfig

        class PickConfig(ComponentConfig):
            expert: str
            "The name of the expert to return."

        class Pick(Algorithm[PickConfig]):
            config_class = PickConfig

            def run(self, pool, context):
                return pool.experts[self.config.expert]

    Call `run` without a context to merge by hand: `Pick(expert="a").run(models)` takes a pool or
    `{"base": ..., "models": {...}}`. It returns the lazy merge that a run would write, planned and
    checked alike, in the base's dtypes.
    """

    kind = "merge"

    @property
    def saves_task_masks(self) -> bool:
        """Whether `run` calls `RunContext.save_task_masks`, which planning must know."""
        return False

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - the class statement's
        super().__init_subclass__(**options)
        if "run" in vars(cls):
            cls.run = _make_context_optional(cls.run)  # type: ignore[method-assign]

    @abstractmethod
    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource | nn.Module:
        """Fuse the pool's models; return a lazy source or a live model.

        The pool is aligned: every expert has the base's tensor names and shapes. Never modify its
        sources. Raise a `FusionError` for problems that the user can fix.
        """

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Merge the flow's models into weights and check the result."""
        pool = flow.models
        merged = check_result(self.run(pool, context), self.outline(pool), pool, context)
        return replace(flow, merged=flow.restore(merged))

    def outline(self, pool: ModelPool[Any]) -> Outline:
        """Describe the result of `run` from headers; default: the tensors of the models.

        Override this if the result has other tensors or shapes. The plan, `fuse check` and the
        output's `config.json` depend on it. The pool is aligned, and no weights may be read. Raise
        a `FusionError` for problems that the user can fix.
        """
        return Outline(pool.reference.infos)


def _make_context_optional(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method's `run`: a call without a context plans a merge of the given models."""

    @wraps(run)
    def run_or_merge(self: Algorithm[Any], pool: Any, context: RunContext | None = None) -> Any:  # noqa: ANN401
        if context is None:
            return fusion_core.merge(self, pool)
        return run(self, pool, context)

    return run_or_merge


class TensorwiseAlgorithm(Algorithm[ConfigT], Kernel):
    """The base class of fusion methods that merge tensor by tensor.

    A subclass sets `config_class` and implements `merge`. The engine cuts every tensor into pieces
    and calls `merge` once per piece, on several threads or machines, in any order. `merge` must
    therefore be a pure function of the piece. Example::

        from fusion_core import ComponentConfig, TensorwiseAlgorithm
        from fusion_core.weights import sum_in_order

        class DropConfig(ComponentConfig):
            floor: float = 0.01
            "Drop entries of task vectors whose magnitude is at most this."

        class DropAndAverage(TensorwiseAlgorithm[DropConfig]):
            config_class = DropConfig

            def merge(self, piece):
                deltas = piece.task_vectors  # (experts, *shape of the piece)
                large = deltas.where(deltas.abs() > self.config.floor, 0)
                return piece.base + sum_in_order(large) / len(large)

    Two properties, which may depend on the options, tell the engine what the method needs:

    - `cut`: how finely tensors may be cut for `merge`; default: between any two elements.
    - `scope`: how much `survey` sees before the first call of `merge`, one tensor or the whole
      model; default: nothing, and `survey` is not called. Its result is `piece.state`.

    If the configuration has a field `weights: ExpertWeights`, `piece.weights` holds one factor per
    expert.
    """

    @overload
    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource: ...
    @overload
    def run(self, pool: ModelPool[Any] | Mapping[str, Any]) -> WeightSource: ...
    def run(self, pool: Any, context: Any = None) -> WeightSource:
        """Return the lazy merge; reading it calls `survey` and `merge`."""
        merged: WeightSource = context.merge(pool, self, weights=weights_of(self, pool))
        return merged
