"""What a run's algorithms are given, those of nested recipes too, and what plugins hear of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.context import RunContext
from fusion_core.contracts.metrics import FILE as METRICS
from fusion_core.contracts.metrics import MetricsLog
from fusion_core.machine.ranks import helps
from fusion_core.planning.dtypes import dtype_of, stored_infos
from fusion_core.planning.pipeline import apply_stages
from fusion_core.weights import CastSource, WeightSource
from fusion_core.weights.merging.piece import Bound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.run import RunInfo
    from fusion_core.planning.planned import Plan


def notify(plan: Plan, hook: str, **what: Any) -> None:  # noqa: ANN401 - what the hook takes
    """Tell plugins what happens; of several processes the first one does."""
    if not helps():
        plan.plugins.notify(hook, **what)


def prepare(
    plan: Plan, info: RunInfo, executor: Executor, state: Path | None
) -> tuple[ModelPool[Any], RunContext]:
    """Return what a plan's algorithm is given: the pool, aligned, and a context.

    Recipes in the places of models are run first. `state` is where algorithms keep what they resume
    from.
    """
    merges, side_files, warnings = run_nested(plan.nested, info, executor, state)
    pool = plan.pool.with_sources(merges).aligned(plan.resolved.recipe.alignment)
    context = _context(plan, info, executor, state)
    context.side_files |= side_files
    context.warnings += warnings
    return pool, context


def run_nested(
    plans: Mapping[str, Plan], info: RunInfo, executor: Executor, state: Path | None
) -> tuple[dict[str, WeightSource], dict[str, bytes | WeightSource], list[str]]:
    """Return the lazy merges of the recipes in the places of models, by model.

    With them come the files that the recipes' methods saved, and their warnings: both named after
    the models.
    """
    merges: dict[str, WeightSource] = {}
    side_files: dict[str, bytes | WeightSource] = {}
    warnings: list[str] = []
    for number, (name, nested) in enumerate(plans.items()):
        nested_state = None if state is None else state / f"nested-{number}"
        if nested_state is not None and nested.adapts:  # else there is nothing to resume from
            nested_state.mkdir(parents=True, exist_ok=True)
        merges[name], context = _merge_nested(nested, info, executor, nested_state)
        stem = re.sub(r"[^-_.a-zA-Z0-9]", "-", name)
        side_files |= {f"{stem}.{file}": data for file, data in context.side_files.items()}
        warnings += [f"{name}/{warning}" for warning in context.warnings]
    return merges, side_files, warnings


def _merge_nested(
    plan: Plan, info: RunInfo, executor: Executor, state: Path | None
) -> tuple[WeightSource, RunContext]:
    """Return the lazy merge of a recipe in the place of a model, and the context of its run."""
    pool, context = prepare(plan, info, executor, state)
    merged = apply_stages(plan.stages, pool, context)
    finite = context.finite and plan.resolved.recipe.output.dtype is not None
    merged = CastSource(merged, plan.infos_of_merge(pool), finite=finite)
    return merged, context


def round_for(plan: Plan, merged: WeightSource, pool: ModelPool[Any]) -> WeightSource:
    """Give every tensor the dtype to be stored in: the recipe's, or the base's."""
    recipe = plan.resolved.recipe
    infos = stored_infos(plan.outline_of(pool), dtype_of(recipe.output.dtype))
    return CastSource(merged, infos, finite=recipe.alignment.nan == "error")


def _context(plan: Plan, info: RunInfo, executor: Executor, state: Path | None) -> RunContext:
    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        notify(plan, "fusion_metrics_logged", run=info, step=step, metrics=metrics)

    return RunContext(
        tasks=plan.tasks if plan.adapts else None,
        seed=plan.resolved.recipe.seed,
        device=plan.device,
        executor=executor,
        progress=plan.options.progress,
        finite=plan.resolved.recipe.alignment.nan == "error",
        bound=Bound.NONE if plan.resolved.recipe.alignment.outliers == "allow" else Bound.TENSOR,
        on_metrics=on_metrics,
        state=state,
        output=plan.path,
        metrics=MetricsLog(None if state is None else state / METRICS),
    )
