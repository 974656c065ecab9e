"""The pool and context that a run's algorithms receive, including those of nested recipes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.context import RunContext
from fusion_core.contracts.metrics_log import METRICS_FILE as METRICS
from fusion_core.contracts.metrics_log import MetricsLog
from fusion_core.machine.ranks import is_helper_process
from fusion_core.planning.dtypes import describe_stored
from fusion_core.planning.kernels import choose_kernels
from fusion_core.planning.pipeline import apply_stages
from fusion_core.weights import CastSource, WeightSource
from fusion_core.weights.merging.piece import Bound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.run import RunInfo
    from fusion_core.planning.run_plan import Plan


def notify(plan: Plan, hook: str, **arguments: Any) -> None:  # noqa: ANN401 - what the hook takes
    """Call a hook of all plugins, in the first of several processes only."""
    if not is_helper_process():
        plan.plugins.notify(hook, **arguments)


def prepare(
    plan: Plan, info: RunInfo, executor: Executor, state: Path | None
) -> tuple[ModelPool[Any], RunContext]:
    """Return the aligned pool and the context for a plan's algorithm, after its nested recipes.

    Algorithms keep what they need to resume in the directory `state`.
    """
    merges, side_files, warnings = run_nested(plan.nested, info, executor, state)
    policy = plan.resolved.recipe.alignment
    pool = plan.pool.with_sources(merges).aligned(policy) if merges else plan.aligned

    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        notify(plan, "fusion_metrics_logged", run=info, step=step, metrics=metrics)

    context = RunContext(
        tasks=plan.tasks if plan.adapts else None,
        seed=plan.resolved.recipe.seed,
        device=plan.device,
        executor=executor,
        progress=plan.options.progress,
        finite=policy.nan == "error",
        bound=Bound.NONE if policy.outliers == "allow" else Bound.TENSOR,
        kernels=choose_kernels(plan.plugins, pool),
        on_metrics=on_metrics,
        state=state,
        output=plan.path,
        metrics=MetricsLog(None if state is None else state / METRICS),
    )
    if context.tasks is not None:
        context.tasks = context.tasks.prepare(plan.device, context.save)
    context.side_files |= side_files
    context.warnings += warnings
    return pool, context


def run_nested(
    plans: Mapping[str, Plan], info: RunInfo, executor: Executor, state: Path | None
) -> tuple[dict[str, WeightSource], dict[str, bytes | WeightSource], list[str]]:
    """Return the lazy merges of the recipes that stand for models, by model name.

    Also return the side files and the warnings of these recipes, each prefixed with its model's
    name.
    """
    merges: dict[str, WeightSource] = {}
    side_files: dict[str, bytes | WeightSource] = {}
    warnings: list[str] = []
    for number, (name, plan) in enumerate(plans.items()):
        nested_state = None if state is None else state / f"nested-{number}"
        if nested_state is not None and plan.adapts:  # other recipes keep no state
            nested_state.mkdir(parents=True, exist_ok=True)
        pool, context = prepare(plan, info, executor, nested_state)
        merged = apply_stages(plan.stages, pool, context)
        finite = context.finite and plan.dtype is not None
        merges[name] = CastSource(merged, plan.infos_of_merge(pool), finite=finite)
        stem = re.sub(r"[^-_.a-zA-Z0-9]", "-", name)
        side_files |= {f"{stem}.{file}": data for file, data in context.side_files.items()}
        warnings += [f"{name}/{warning}" for warning in context.warnings]
    return merges, side_files, warnings


def cast_for_output(plan: Plan, merged: WeightSource, pool: ModelPool[Any]) -> WeightSource:
    """Cast every tensor to its stored dtype: the recipe's, or else the base's."""
    infos = describe_stored(plan.outline_of(pool), plan.dtype)
    return CastSource(merged, infos, finite=plan.resolved.recipe.alignment.nan == "error")
