"""The pipeline: recipe -> pools and algorithm -> lazy merge -> model directory -> report.

`run_fusion` is what the command line calls, and what Python programs call: there is no other way.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import hub, provenance
from fusion_core.algorithm import Algorithm, RunContext
from fusion_core.config import Choice, choice_of, resolve_component
from fusion_core.downloads import wanted_of
from fusion_core.errors import FusionError, RecipeError
from fusion_core.evaluation import RECIPE, evaluate, write_report
from fusion_core.fused import as_source, dtype_of, rounded
from fusion_core.metrics import FILE as METRICS
from fusion_core.metrics import MetricsLog
from fusion_core.planning import Plan, RunOptions, executor_of, plan
from fusion_core.ranks import helps
from fusion_core.recipes import dump_yaml, load_recipe
from fusion_core.selection import created
from fusion_core.specs import AlgorithmSpec
from fusion_core.weights import (
    CheckpointSource,
    Staging,
    StateDictSource,
    WeightSource,
    held_in_memory,
    materialise,
    staged,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from torch import nn

    from fusion_core.model_pool import ModelPool
    from fusion_core.task_pool import Report, TaskPool

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class RunInfo:
    """What life-cycle hooks learn about a run."""

    #: the resolved recipe, defaults included
    recipe: Mapping[str, Any]
    #: where the model goes; None for a run that writes nothing
    path: Path | None


@dataclass(frozen=True)
class RunResult:
    """What a run made."""

    pool: ModelPool[Any]
    #: the merged weights: in memory, or those of the directory written
    weights: WeightSource
    #: the directory, None for a run that wrote nothing
    path: Path | None
    #: what the tasks measured, None if there were none
    report: Report | None
    #: what the algorithm saved beside the model, by file name
    side_files: Mapping[str, bytes]

    @cached_property
    def model(self) -> nn.Module:
        """The merged model, live."""
        return self.pool.build(self.weights)


def run_fusion(  # noqa: PLR0913 - the sections of a recipe, and how to run it
    recipe: Mapping[str, Any] | str | Path | None = None,
    *,
    algorithm: Any = None,  # noqa: ANN401 - a name, a mapping or an object
    model_pool: Any = None,  # noqa: ANN401
    task_pool: Any = None,  # noqa: ANN401
    seed: int | None = None,
    output: Mapping[str, Any] | str | Path | None = None,
    options: RunOptions | None = None,
) -> RunResult:
    """Fuse models, write the result, and evaluate it.

    `recipe` is a mapping or a file; the other arguments override its sections. `algorithm`,
    `model_pool` and `task_pool` are names, mappings of a name and options, or objects; a model pool
    may also be `{"base": ..., "models": {...}}` of live modules, state dicts or paths. A pool of
    live models writes nothing unless `output` names a path.

    Raises a `FusionError` for everything that its caller can mend; nothing is left half-written.
    """
    sections = {"algorithm": algorithm, "model_pool": model_pool, "task_pool": task_pool}
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe or {})
    raw |= {name: value for name, value in sections.items() if value is not None}
    if seed is not None:
        raw["seed"] = seed
    if output is not None:
        raw["output"] = {"path": str(output)} if isinstance(output, str | Path) else dict(output)
    return execute(plan(raw, options or RunOptions()))


def execute(plan: Plan) -> RunResult:
    """Carry a plan out: merge, commit, evaluate."""
    info = RunInfo(plan.recipe, plan.path)
    _notify(plan, "fusion_run_started", run=info)
    _download(plan)
    with (
        hub.session(plan.options.progress),
        nullcontext() if helps() else _staging(plan) as staging,
        executor_of(plan) as executor,
    ):
        state = None if staging is None else staging.state
        _start_nested(plan, info, executor, state)
        pool = plan.pool.aligned(plan.resolved.recipe.alignment)
        context = _context(plan, info, executor, state)
        started = time.perf_counter()
        fused = as_source(plan.algorithm.run(pool, context), pool)
        if context.metrics.steps:
            context.save(METRICS, context.metrics.as_bytes())
        weights = _rounded(fused, pool, plan)
        if helps():  # the first process does the rest
            return RunResult(pool, weights, None, None, context.side_files)
        if staging is None:
            weights.prepare(executor)
            written: WeightSource = StateDictSource(weights.state_dict(), label="the merge")
            plan.pool.check_unchanged()
        else:
            _write(plan, staging, pool, weights, context, started)
    if plan.path is not None:
        written = CheckpointSource(plan.path)
    result = RunResult(pool, written, plan.path, None, context.side_files)
    if plan.tasks is not None and plan.options.evaluate:
        result = replace(result, report=_evaluated(plan, result))
    _notify(plan, "fusion_run_finished", run=info, result=result)
    return result


def wanted(plan: Plan) -> list[hub.Wanted]:
    """Return what a run reads from the hub, sooner or later."""
    return wanted_of(plan.pool, _tasks_read(plan))


def _tasks_read(plan: Plan) -> TaskPool[Any] | None:
    """Return the tasks if anything looks at them."""
    return plan.tasks if plan.adapts or plan.options.evaluate else None


def _inputs(plan: Plan) -> dict[str, Any]:
    """Identify what goes into a run: models, and tasks' data that has a name."""
    tasks = _tasks_read(plan)
    data = {} if tasks is None else tasks.inputs()
    return {"inputs": plan.pool.inputs(), **({"tasks": data} if data else {})}


def _download(plan: Plan) -> None:
    """Have everything here before any work is done: what the hub refuses then costs nothing."""
    with hub.session(plan.options.progress):
        files = wanted(plan)
        if files and not helps():
            _ = plan.aligned  # from headers: it may all be in vain
            hub.check_room(hub.size_of(files))
            hub.fetch(files)


def _notify(plan: Plan, hook: str, **what: Any) -> None:  # noqa: ANN401 - what the hook takes
    """Tell plugins what happens; of several processes the first one does."""
    if not helps():
        plan.plugins.notify(hook, **what)


@contextmanager
def _staging(plan: Plan) -> Iterator[Staging | None]:
    """Open the output's staging directory; None for a run that writes nothing."""
    described = None if plan.path is None else _described(plan)
    if plan.options.resume and described is None:
        raise RecipeError(
            "a run with models in memory cannot be resumed: nothing tells them apart",
            hint="Leave --resume out, or save the models and name their directories.",
        )
    if plan.path is None:
        yield None
        return
    options = plan.options
    with staged(
        plan.path, overwrite=options.overwrite, plan=described, resume=options.resume
    ) as staging:
        yield staging


def _described(plan: Plan) -> bytes | None:
    """Say in full what a run does, before it does it; None if that cannot be told from files."""
    if any(map(held_in_memory, plan.pool.by_name.values())):
        return None
    parts = {"recipe": plan.recipe, **_inputs(plan), **_environment(plan)}
    return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


def _write(  # noqa: PLR0913, PLR0917 - what is written, where, and since when
    plan: Plan,
    staging: Staging,
    pool: ModelPool[Any],
    weights: WeightSource,
    context: RunContext,
    started: float,
) -> None:
    """Write the model directory: all of it, or nothing; `pool` is the aligned one."""
    output = plan.resolved.recipe.output
    materialise(
        weights,
        staging,
        shard_size=output.shard_size,
        executor=context.executor,
        progress=plan.options.progress,
    )
    assets = pool.assets(dtype=dtype_of(output.dtype))
    for name, content in {**assets, **context.side_files}.items():
        staging.add(name, content)
    staging.add(RECIPE, dump_yaml(plan.recipe).encode())
    seconds = round(time.perf_counter() - started, 3)
    timings = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds}
    staging.add(PROVENANCE, _provenance(plan, pool, weights, staging, timings))
    pool.check_unchanged()
    staging.commit(overwrite=plan.options.overwrite)


def _provenance(
    plan: Plan,
    pool: ModelPool[Any],
    weights: WeightSource,
    staging: Staging,
    timings: Mapping[str, Any],
) -> bytes:
    parts = {
        **_environment(plan),
        **_inputs(plan),
        "tensors": provenance.counts(pool, weights, skipped=plan.skipped),
        "outputs": provenance.outputs(staging),
    }
    return json.dumps(provenance.statement(parts, timings), indent=2).encode() + b"\n"


def _environment(plan: Plan) -> dict[str, Any]:
    return provenance.environment(plan.distributions, plan.plugins.plugins, plan.device)


def _rounded(fused: WeightSource, pool: ModelPool[Any], plan: Plan) -> WeightSource:
    """Give every tensor the dtype to be stored in: the recipe's, or the base's."""
    recipe = plan.resolved.recipe
    finite = recipe.alignment.nan == "error"
    return rounded(fused, pool, dtype=dtype_of(recipe.output.dtype), finite=finite)


def _evaluated(plan: Plan, result: RunResult) -> Report:
    """Evaluate what was made; a failure leaves a committed model where it is and says so."""
    assert plan.tasks is not None  # noqa: S101 - the caller looked
    try:
        report = evaluate(
            result.pool,
            plan.tasks,
            result.weights,
            device=plan.device,
            progress=plan.options.progress,
            transductive=plan.tasks.transductive if plan.adapts else None,
        )
        if result.path is not None:
            write_report(report, result.path)
    except Exception as error:
        if result.path is None:
            raise
        raise FusionError(
            f"the model is complete in {result.path}, but its evaluation failed: {error}",
            hint=f"Try again with: fuse evaluate {result.path}",
        ) from error
    return report


def _start_nested(plan: Plan, info: RunInfo, executor: Executor, state: Path | None) -> None:
    """Run the algorithms of the recipes in the places of models; what they merge stays lazy."""
    for number, source in enumerate(plan.nested.values()):
        inner = source.plan
        place = None if state is None else state / f"nested-{number}"
        if place is not None and inner.adapts:  # else nothing is kept, so nothing can be resumed
            place.mkdir(parents=True, exist_ok=True)
        _start_nested(inner, info, executor, place)
        pool = inner.pool.aligned(inner.resolved.recipe.alignment)
        context = _context(inner, info, executor, place)
        merged = as_source(inner.algorithm.run(pool, context), pool)
        if inner.resolved.recipe.output.dtype is not None:
            merged = _rounded(merged, pool, inner)
        source.start(merged, context.side_files)


def _nested_files(plan: Plan) -> dict[str, bytes]:
    """Name what nested algorithms saved after the model whose place they take."""
    return {
        f"{re.sub(r'[^-_.a-zA-Z0-9]', '-', name)}.{file}": content
        for name, source in plan.nested.items()
        for file, content in source.side_files.items()
    }


def _context(plan: Plan, info: RunInfo, executor: Executor, state: Path | None) -> RunContext:
    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        _notify(plan, "fusion_metrics_logged", run=info, step=step, metrics=metrics)

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
