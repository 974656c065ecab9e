"""What a run's algorithms are given, those of nested recipes too, and what plugins hear of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm, RunContext
from fusion_core.contracts.metrics import FILE as METRICS
from fusion_core.contracts.metrics import MetricsLog
from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.machine.ranks import helps
from fusion_core.planning.resolving import resolve_component
from fusion_core.planning.result import as_source, dtype_of, rounded
from fusion_core.planning.selection import created
from fusion_core.recipe.config import Choice, choice_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.run import RunInfo
    from fusion_core.planning.plan import Plan
    from fusion_core.weights import WeightSource


def notify(plan: Plan, hook: str, **what: Any) -> None:  # noqa: ANN401 - what the hook takes
    """Tell plugins what happens; of several processes the first one does."""
    if not helps():
        plan.plugins.notify(hook, **what)


def start_nested(plan: Plan, info: RunInfo, executor: Executor, state: Path | None) -> None:
    """Run the algorithms of the recipes in the places of models; what they merge stays lazy."""
    for number, source in enumerate(plan.nested.values()):
        inner = source.plan
        place = None if state is None else state / f"nested-{number}"
        if place is not None and inner.adapts:  # else nothing is kept, so nothing can be resumed
            place.mkdir(parents=True, exist_ok=True)
        start_nested(inner, info, executor, place)
        pool = inner.pool.aligned(inner.resolved.recipe.alignment)
        context = context_of(inner, info, executor, place)
        merged = ran(inner.algorithm, pool, context)
        if inner.resolved.recipe.output.dtype is not None:
            merged = rounded_for(merged, pool, inner)
        source.start(merged, context.side_files)


def ran(algorithm: Algorithm[Any], pool: ModelPool[Any], context: RunContext) -> WeightSource:
    """Run an algorithm; what it logged is then among what it saved."""
    fused = as_source(algorithm.run(pool, context), pool)
    if context.metrics.steps:
        context.save(METRICS, context.metrics.as_bytes())
    return fused


def _nested_files(plan: Plan) -> dict[str, bytes]:
    """Name what nested algorithms saved after the model whose place they take."""
    return {
        f"{re.sub(r'[^-_.a-zA-Z0-9]', '-', name)}.{file}": content
        for name, source in plan.nested.items()
        for file, content in source.side_files.items()
    }


def context_of(plan: Plan, info: RunInfo, executor: Executor, state: Path | None) -> RunContext:
    """Return what a plan's algorithm is given; `state` is where it keeps what it resumes from."""

    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        notify(plan, "fusion_metrics_logged", run=info, step=step, metrics=metrics)

    def algorithm(of: Any) -> Algorithm[Any]:  # noqa: ANN401 - a name or a mapping
        choice: Choice = choice_of(of)
        return created(
            resolve_component(AlgorithmSpec, choice, plan.plugins, section="algorithm.of")
        )

    return RunContext(
        tasks=plan.tasks if plan.adapts else None,
        seed=plan.resolved.recipe.seed,
        device=plan.device,
        executor=executor,
        progress=plan.options.progress,
        finite=plan.resolved.recipe.alignment.nan == "error",
        algorithm=algorithm,
        on_metrics=on_metrics,
        state=state,
        output=plan.path,
        metrics=MetricsLog(None if state is None else state / METRICS),
        side_files=_nested_files(plan),
    )


def rounded_for(fused: WeightSource, pool: ModelPool[Any], plan: Plan) -> WeightSource:
    """Give every tensor the dtype to be stored in: the recipe's, or the base's."""
    recipe = plan.resolved.recipe
    finite = recipe.alignment.nan == "error"
    return rounded(fused, pool, dtype=dtype_of(recipe.output.dtype), finite=finite)
