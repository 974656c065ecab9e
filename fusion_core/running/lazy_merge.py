"""Merges without a run: one algorithm applied to models, and the models of a recipe."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.run import RunInfo
from fusion_core.planning.pipeline import apply_stages
from fusion_core.planning.plan import name_plans, plan, resolve_models
from fusion_core.planning.run_options import RunOptions
from fusion_core.planning.run_plan import Plan
from fusion_core.planning.trust import check_trusted, collect_needs
from fusion_core.plugins.manager import PluginManager, load_plugins
from fusion_core.recipe.config import AlignmentPolicy, choice_of
from fusion_core.recipe.validation import validate
from fusion_core.running._context import cast_for_output, prepare, run_nested
from fusion_core.weights import SerialExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import WeightSource

_LOG = logging.getLogger(__name__)


def merge(
    algorithm: Any,  # noqa: ANN401 - a name, a mapping, an object, or a list of these
    models: ModelPool[Any] | Mapping[str, Any],
    options: RunOptions | None = None,
) -> WeightSource:
    """Return the lazy merge that `run_fusion` would write, without writing anything.

    `algorithm` and `models` are as in `run_fusion`; a list of algorithms is a pipeline of stages.
    Raises the same errors. Side files that the algorithm saves are dropped.
    """
    options = replace(options or RunOptions(), evaluate=False)
    planned = plan({"algorithm": algorithm, "model_pool": models}, options)
    planned.check_trust()
    pool, context = prepare(planned, RunInfo(planned.recipe, None), SerialExecutor(), None)
    merged = cast_for_output(planned, apply_stages(planned.stages, pool, context), pool)
    for warning in context.warnings:
        _LOG.warning("%s", warning)
    return merged


def load_models(
    recipe: Mapping[str, Any] | Plan,
    plugins: PluginManager | None = None,
    *,
    trust: frozenset[str] | None = None,
) -> ModelPool[Any]:
    """Return the aligned models that a recipe or a plan merges, with nested recipes merged.

    `trust` is that of `RunOptions`, by default the plan's or the environment's. Raises a
    `FusionError` for models that are missing, do not fit, or need trust that is not given.
    """
    options = recipe.options if isinstance(recipe, Plan) else RunOptions(evaluate=False)
    options = options if trust is None else replace(options, trust=trust)
    if isinstance(recipe, Plan):
        check_trusted(collect_needs(recipe.components_of_models()), options.trust)
        pool, nested, policy = recipe.pool, recipe.nested, recipe.resolved.recipe.alignment
        info = RunInfo(recipe.recipe, None)
    else:
        choice = choice_of(recipe.get("model_pool"))
        resolved, plans = resolve_models(choice, plugins or load_plugins(), options)
        pool = resolved.create()
        nested = name_plans(plans, pool)
        policy = validate(AlignmentPolicy, recipe.get("alignment", {}), prefix="alignment")
        info = RunInfo(recipe, None)
    merges, _, warnings = run_nested(nested, info, SerialExecutor(), None)
    for warning in warnings:
        _LOG.warning("%s", warning)
    return pool.with_sources(merges).aligned(policy)
