"""A merge by hand: an algorithm called without a run, on a pool or on models as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.run import RunInfo
from fusion_core.planning.options import RunOptions
from fusion_core.planning.plan import plan
from fusion_core.running._context import prepare, round_for
from fusion_core.running._stages import run_stages
from fusion_core.weights import SerialExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource


def merge(algorithm: Any, models: ModelPool[Any] | Mapping[str, Any]) -> WeightSource:  # noqa: ANN401
    """Return the lazy merge that `run_fusion` would write; nothing is written.

    `algorithm` and `models` are what that takes: for a pipeline, a list of stages. Raises as that
    does. What the algorithm saves beside a model is dropped.
    """
    planned = plan({"algorithm": algorithm, "model_pool": models}, RunOptions(evaluate=False))
    pool, context = prepare(planned, RunInfo(planned.recipe, None), SerialExecutor(), None)
    return round_for(planned, run_stages(planned.stages, pool, context), pool)
