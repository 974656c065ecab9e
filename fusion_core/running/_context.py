"""What a run's algorithms are given, those of nested recipes too, and what plugins hear of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm, RunContext
from fusion_core.contracts.metrics import FILE as METRICS
from fusion_core.contracts.metrics import MetricsLog
from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.machine.ranks import helps
from fusion_core.planning.dtypes import dtype_of, stored_infos
from fusion_core.planning.resolving import resolve_component
from fusion_core.planning.selection import create_algorithms, parts_of
from fusion_core.recipe.config import Choice, ComponentConfig, choice_of
from fusion_core.recipe.patterns import Selection
from fusion_core.running._parts import run_parts
from fusion_core.weights import CastSource, WeightSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.run import RunInfo
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.plan import Plan
    from fusion_core.planning.resolved import Resolved


def notify(plan: Plan, hook: str, **what: Any) -> None:  # noqa: ANN401 - what the hook takes
    """Tell plugins what happens; of several processes the first one does."""
    if not helps():
        plan.plugins.notify(hook, **what)


def prepare(
    plan: Plan, info: RunInfo, executor: Executor, state: Path | None
) -> tuple[ModelPool[Any], RunContext]:
    """Return what a plan's algorithm is given: the pool, aligned, and a context.

    Recipes in the places of models are run first; what they merge stays lazy. `state` is where
    algorithms keep what they resume from.
    """
    merges: dict[str, WeightSource] = {}
    side_files: dict[str, bytes] = {}
    for number, (name, nested) in enumerate(plan.nested.items()):
        place = None if state is None else state / f"nested-{number}"
        if place is not None and nested.adapts:  # else nothing is kept, so nothing can be resumed
            place.mkdir(parents=True, exist_ok=True)
        merges[name], found = _merge_nested(nested, info, executor, place)
        stem = re.sub(r"[^-_.a-zA-Z0-9]", "-", name)
        side_files |= {f"{stem}.{file}": content for file, content in found.items()}
    pool = plan.pool.with_sources(merges).aligned(plan.resolved.recipe.alignment)
    context = _context(plan, info, executor, state)
    context.side_files |= side_files
    return pool, context


def _merge_nested(
    plan: Plan, info: RunInfo, executor: Executor, state: Path | None
) -> tuple[WeightSource, Mapping[str, bytes]]:
    """Return the lazy merge of a recipe in the place of a model, and what was saved beside it."""
    pool, context = prepare(plan, info, executor, state)
    merged = run_algorithm(plan, pool, context)
    if plan.resolved.recipe.output.dtype is not None:
        merged = round_for(plan, merged, pool)
    return merged, context.side_files


def run_algorithm(plan: Plan, pool: ModelPool[Any], context: RunContext) -> WeightSource:
    """Run a plan's algorithm; what it logged is then among what it saved."""
    merged = run_parts(plan.parts, pool, context)
    if context.metrics.steps:
        context.save(METRICS, context.metrics.as_bytes())
    return merged


def round_for(plan: Plan, merged: WeightSource, pool: ModelPool[Any]) -> WeightSource:
    """Give every tensor the dtype to be stored in: the recipe's, or the base's."""
    recipe = plan.resolved.recipe
    infos = stored_infos(pool, dtype_of(recipe.output.dtype))
    return CastSource(merged, infos, finite=recipe.alignment.nan == "error")


def _context(plan: Plan, info: RunInfo, executor: Executor, state: Path | None) -> RunContext:
    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        notify(plan, "fusion_metrics_logged", run=info, step=step, metrics=metrics)

    def algorithm(of: Any) -> Algorithm[Any]:  # noqa: ANN401 - a name or a mapping
        choice: Choice = choice_of(of)
        return _inner(
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
    )


def _inner(resolved: Resolved[AlgorithmSpec]) -> Algorithm[Any]:
    """Make an algorithm that another one has among its options."""
    algorithms = create_algorithms(resolved)
    plain = resolved.selection == Selection()
    return algorithms[0] if plain else _Inner(algorithms, resolved.selection)


class _Inner(Algorithm[ComponentConfig]):
    """An algorithm among another one's options, with patterns of its own."""

    def __init__(self, algorithms: Sequence[Algorithm[Any]], selection: Selection) -> None:
        super().__init__(algorithms[0].config)
        self._algorithms, self._selection = algorithms, selection

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Return the tasks as the algorithm sees them."""
        return self._algorithms[0].tasks(pool)

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Run the algorithm on its tensors."""
        return run_parts(parts_of(self._algorithms, self._selection, pool), pool, context)
