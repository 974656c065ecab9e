"""Carry a run out: recipe -> pools and algorithm -> lazy merge -> model directory -> report.

The command line and Python programs both call `run_fusion`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.contracts.run import RunInfo, RunResult
from fusion_core.errors import FusionError
from fusion_core.machine.attribution import forbid_exit
from fusion_core.machine.ranks import is_helper_process
from fusion_core.planning.pipeline import apply_stages
from fusion_core.planning.plan import plan
from fusion_core.planning.run_options import RunOptions
from fusion_core.plugins.manager import load_plugins
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.assignments import assign
from fusion_core.report.below_base import below_base_warnings
from fusion_core.running._context import cast_for_output, notify, prepare
from fusion_core.running._locked_inputs import check_lock
from fusion_core.running._output import (
    claim_output,
    find_near_models,
    open_run_staging,
    read_assets,
    write_model,
)
from fusion_core.running.evaluation import evaluate, write_report
from fusion_core.running.task_overrides import find_added_modules, overrides_among, read_overrides
from fusion_core.weights import StateDictSource, WeightSource
from fusion_core.weights.merging.execution import read_state_dict
from fusion_core.weights.merging.memory_errors import report_out_of_memory
from fusion_core.weights.merging.transforms import count_compiled

if TYPE_CHECKING:
    from types import EllipsisType

    from fusion_core.contracts.report import Report
    from fusion_core.planning.run_plan import Plan

_LOG = logging.getLogger(__name__)


@forbid_exit()
def run_fusion(  # noqa: PLR0913 - the sections of a recipe, and how to run it
    recipe: Mapping[str, Any] | str | Path | None = None,
    *,
    algorithm: Any = None,  # noqa: ANN401 - a name, a mapping or an object
    model_pool: Any = None,  # noqa: ANN401
    task_pool: Any = None,  # noqa: ANN401
    seed: int | None = None,
    output: Mapping[str, Any] | str | Path | EllipsisType | None = ...,
    options: RunOptions | None = None,
) -> RunResult:
    """Fuse models, write the result, and evaluate it.

    `recipe` is a mapping or a file, and the other arguments override its sections. `algorithm`,
    `model_pool` and `task_pool` are names, mappings of a name and options, or objects. A model pool
    may also be `{"base": ..., "models": {...}}` with live modules, state dicts or paths.

    `output` is a path or a mapping for the recipe's section. None keeps the merge in memory, which
    takes the model's size, and writes nothing. By default the recipe's output applies, or else
    `outputs/<pool>-<algorithm>-<n>`. A pool of live models writes nothing by default.

    Raises a `FusionError` for everything that the caller can fix. Nothing is left half-written.
    """
    sections = {"algorithm": algorithm, "model_pool": model_pool, "task_pool": task_pool}
    options = options or RunOptions()
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe, load_plugins(options.block))
    raw = dict(recipe or {})
    raw |= {name: value for name, value in sections.items() if value is not None}
    if seed is not None:
        raw["seed"] = seed
    if isinstance(output, Mapping):
        raw["output"] = dict(output)
    elif output is not ...:
        raw = assign(raw, ("output", "path"), output and str(output), origin="output")
    planned = plan(raw, options)
    for warning in () if is_helper_process() else planned.warnings:
        _LOG.warning("%s", warning)
    result = execute(planned)
    if result.report is not None:
        for warning in below_base_warnings({planned.algorithm_name: result.report}):
            _LOG.warning("%s", warning)
    return result


@report_out_of_memory()
def execute(plan: Plan) -> RunResult:
    """Carry a plan out: claim the output, merge, commit and evaluate. Raises as `run_fusion`.

    Change a plan with `dataclasses.replace`: another `path` writes elsewhere (None writes nothing),
    another `pool` merges models that are already open, other `tasks` measure something else. A run
    does not change its pools, so several runs may share them.
    """
    plan.check_trust()
    plan.plugins.check_run(plan.info)
    committed: list[Path] = []
    try:
        return _execute(plan, committed)
    except KeyboardInterrupt as interrupt:
        if committed and not hasattr(interrupt, "__notes__"):
            path = committed[0]
            measure = f"; to measure it: fuse evaluate {path}" if plan.tasks is not None else "."
            interrupt.add_note(f"The model is complete in {path}{measure}")
        raise


def _execute(plan: Plan, committed: list[Path]) -> RunResult:
    with hub.session(plan.options.progress), claim_output(plan) as final:
        hub.pin(plan.commits)
        info = final.info
        notify(final, "fusion_run_started", run=info)
        _download(final)
        if not is_helper_process():
            check_lock(final)
            final.check_data()
        result = _merge(final, info, committed)
    if is_helper_process():  # the first process does the rest
        return result
    if final.tasks is not None and final.options.evaluate:
        result = replace(result, report=_evaluate(final, result))
    notify(final, "fusion_run_finished", run=info, result=result)
    if result.path is not None:
        notify(final, "fusion_output_written", path=result.path)
    return result


def _download(plan: Plan) -> None:
    """Download every input, so that a refusal of the hub comes before any work."""
    files = plan.downloads()
    if files and not is_helper_process():
        _ = plan.aligned  # headers suffice to find models that do not fit
        hub.check_space(hub.measure_download(files))
        hub.download_requests(files)


def _merge(plan: Plan, info: RunInfo, committed: list[Path]) -> RunResult:
    """Run the pipeline, and write its result or keep it in memory.

    A written path is added to `committed`.
    """
    with (
        nullcontext() if is_helper_process() else open_run_staging(plan) as staging,
        forbid_exit(),  # inside the staging directory, which keeps the work of an interrupted run
        plan.resolved.executor.create() as executor,
    ):
        state = None if staging is None else staging.state
        pool, context = prepare(plan, info, executor, state)
        assets = {} if staging is None else read_assets(plan, pool)
        started = time.perf_counter()
        merged = apply_stages(plan.stages, pool, context)
        if staging is None:
            weights = cast_for_output(plan, merged, pool)
            if is_helper_process():
                return RunResult(pool, weights, None, None, context.side_files)
            tensors = read_state_dict(weights, executor, plan.options.progress)
            written: WeightSource = StateDictSource(tensors, label="the merge")
            plan.pool.check_unchanged()
            warnings = [*context.warnings, *find_near_models(plan, pool, written)]
            summary: tuple[str, ...] = ()
            kernels: Mapping[str, int] = count_compiled(merged)
        else:
            warnings, summary, kernels = write_model(
                plan, staging, pool, assets, merged, context, started
            )
            committed.append(staging.workspace.output)
    for warning in warnings:
        _LOG.warning("%s", warning)
    if plan.path is not None:
        written = plan.read_output(plan.path, pool)
    return RunResult(
        pool,
        written,
        plan.path,
        None,
        context.side_files,
        summary=summary,
        kernels=kernels,
        add_modules=find_added_modules(context.side_files, plan.plugins),
    )


def _evaluate(plan: Plan, result: RunResult) -> Report:
    """Evaluate the result. A failure after the commit says that the model is complete."""
    assert plan.tasks is not None  # noqa: S101 - `_execute` has checked it
    try:
        report = evaluate(
            result.pool,
            plan.tasks,
            result.weights,
            device=plan.device,
            progress=plan.options.progress,
            transductive=plan.transductive,
            fresh=plan.options.fresh,
            overrides=read_overrides(result.path, lambda: result.pool, plan.plugins)
            if result.path is not None
            else overrides_among(result.side_files, result.pool, plan.plugins),
        )
        report = replace(report, chosen=plan.options.chosen)
        if result.path is not None:
            write_report(report, result.path, plan.tasks.inputs())
    except Exception as error:
        if result.path is None:
            raise
        # A `FusionError` keeps its class, and with it the exit code, and its hint.
        kind, message, hints = FusionError, str(error), []
        if isinstance(error, FusionError):
            kind, message, hints = type(error), error.message, [error.hint] if error.hint else []
        raise kind(
            f"the model is complete in {result.path}, but its evaluation failed: {message}",
            hint="\n".join([*hints, f"Try again with: fuse evaluate {result.path}"]),
        ) from error
    return report
