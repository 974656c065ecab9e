"""Measure a model on tasks, together with the base and the experts that it was merged from.

`fuse run` evaluates what it has committed. `fuse evaluate` measures any directory that a model pool
can build.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fusion_core import hub
from fusion_core.contracts.measurements import Reference
from fusion_core.contracts.outcomes import OUTCOMES
from fusion_core.contracts.report import REPORT, Report
from fusion_core.contracts.specs import TaskPoolSpec
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.machine.attribution import forbid_exit
from fusion_core.planning.needs import check_data, check_tasks
from fusion_core.planning.plan import resolve_models
from fusion_core.planning.resolution import choose_task_pool, resolve_component
from fusion_core.planning.run_options import RunOptions
from fusion_core.planning.trust import (
    check_trusted,
    collect_needs,
    trust_in_environment,
)
from fusion_core.plugins.formats import find_model
from fusion_core.progress import Progress
from fusion_core.recipe.config import Lock
from fusion_core.recipe.paths import strip_folders
from fusion_core.recipe.validation import validate
from fusion_core.running._evaluator import Evaluator
from fusion_core.running._identity import file_digests
from fusion_core.running._measured_models import MeasuredModels, choose_pools
from fusion_core.running.recorded_recipe import (
    MEASURING_SECTIONS,
    check_not_adapted,
    load_recorded_recipe,
    resolve_form_of,
    resolve_stages_of,
)
from fusion_core.running.task_overrides import TaskOverrides, read_recorded_overrides
from fusion_core.weights.merging.memory_errors import report_out_of_memory
from fusion_core.weights.writing.disk import write_durably
from fusion_core.weights.writing.provenance import PROVENANCE, Evaluation, record_evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights import WeightSource


@report_out_of_memory()
@forbid_exit()
def evaluate(  # noqa: PLR0913 - the models, the tasks, and how to measure
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    weights: WeightSource,
    *,
    device: torch.device,
    progress: Progress | None = None,
    transductive: bool | None = None,
    fresh: bool = False,
    overrides: TaskOverrides | None = None,
    own_pools: tuple[ModelPool[Any], TaskPool[Any]] | None = None,
) -> Report:
    """Measure weights on every task, and the pool's base and each task's own expert.

    `own_pools` are the pools to measure the weights with, if these have another tokenizer or
    configuration than the pool's models. Tasks with `overrides` are measured with them. Known
    scores come from the cache unless `fresh` is set.
    """
    evaluator = Evaluator(pool, tasks, device, progress or Progress(), fresh)
    evaluator_of_merge = evaluator
    if own_pools is not None:
        evaluator_of_merge = replace(evaluator, pool=own_pools[0], tasks=own_pools[1])
    return Report(
        evaluator_of_merge.measure_merge(weights, overrides),
        Reference(evaluator.measure_base(), evaluator.measure_experts()),
        transductive,
        tasks.measured_on,
        tasks.published,
        evaluator.metrics,
        evaluator.remembered,
        needs_task=overrides is not None and overrides.tasks is not None,
        conditions=evaluator.conditions,
    )


@report_out_of_memory()
@forbid_exit()
def evaluate_experts(
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    names: Sequence[str],
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Report:
    """Measure the base and each task's own expert on some tasks, before anything is merged.

    The scores are cached for later runs of the same pools, and taken from the cache.
    """
    evaluator = Evaluator(pool, tasks, device, progress or Progress(), names=tuple(names))
    experts, base = evaluator.measure_experts(), evaluator.measure_base()
    return Report(
        experts,
        Reference(base, experts),
        metrics=evaluator.metrics,
        measured_on=tasks.measured_on,
    )


@forbid_exit()
def evaluate_directory(  # noqa: PLR0913 - the models, the tasks, and how to measure
    directory: Path,
    plugins: PluginManager,
    *,
    recipe: Mapping[str, Any] | None = None,
    device: torch.device,
    progress: Progress | None = None,
    fresh: bool = False,
    trust: frozenset[str] | None = None,
) -> Report:
    """Measure a model directory on the pools of a recipe, by default of the recipe in it.

    The model is built and read with the configuration and tokenizer in its directory. Writes
    `report.json` into the directory if the pools are those of its own recipe.

    `trust` is that of `RunOptions`, by default the environment's. Raises `RecipeError` for
    components that need trust that is not given.
    """
    trust = trust_in_environment() if trust is None else trust
    if not directory.exists():
        raise CheckpointError(
            f"{directory} does not exist", hint="Give a directory or a .safetensors file."
        )
    recorded = load_recorded_recipe(directory)
    recipe = recorded if recipe is None else recipe
    as_recorded = bool(recorded) and all(
        recipe.get(section) == recorded.get(section) for section in MEASURING_SECTIONS
    )
    form = resolve_form_of(recorded, plugins)
    pool_choice, tasks_choice = choose_pools(recipe, recorded, directory, plugins)
    options = RunOptions(device=str(device), evaluate=False, trust=trust, fresh=fresh)
    resolved_pool, nested = resolve_models(pool_choice, plugins, options)
    tasks_choice = choose_task_pool(tasks_choice, resolved_pool)
    if tasks_choice.name is None:
        raise RecipeError(
            "no tasks to evaluate on",
            hint="Name a task pool with --task-pool; see: fuse list tasks",
        )
    resolved_tasks = resolve_component(TaskPoolSpec, tasks_choice, plugins, section="task_pool")
    # a method that adapts on a half of the examples leaves the other half for measuring
    stages = resolve_stages_of(recorded or recipe, plugins)
    if not stages and as_recorded:
        check_not_adapted(directory)
    adapted = bool(recorded) and any(stage.component.spec.uses_tasks for stage in stages)
    check_trusted(collect_needs([resolved_pool, resolved_tasks, form, *stages]), trust)
    with hub.session(progress):
        hub.pin(validate(Lock, recipe.get("lock") or {}, prefix="lock").commits)
        models = MeasuredModels.create(resolved_pool, nested, recipe)
        pool = models.aligned
        if form is not None:
            weights = form.create().decode(directory, pool)
        else:  # of any format; an adapter belongs to the pool's base
            weights = find_model(str(directory), "the measured model").open(pool.base)
        own_models = models.with_own_files(weights, directory)

        def bind(models: MeasuredModels) -> TaskPool[Any]:
            tasks: TaskPool[Any] = resolved_tasks.create().bind(models.stored)
            check_tasks(tasks)
            check_data(tasks, resolved_tasks.component.plugin.distribution)
            for stage in stages:
                tasks = stage.create().tasks(tasks)
            return tasks

        tasks = bind(models)
        report = evaluate(
            pool,
            tasks,
            weights,
            own_pools=None if own_models is None else (own_models.aligned, bind(own_models)),
            device=device,
            progress=progress,
            transductive=tasks.transductive if adapted else None,
            fresh=fresh,
            overrides=read_recorded_overrides(directory, plugins, trust=trust),
        )
    if as_recorded:
        write_report(report, directory, tasks.inputs())
        plugins.notify("fusion_output_written", path=directory)
    return report


def write_report(report: Report, directory: Path, data: Mapping[str, Any]) -> None:
    """Write `report.json` and, if tasks have outcomes, `outcomes.json` into a model directory.

    Each file is written in one step. The report follows the outcomes, so that it never lies next to
    those of another report. The provenance, if there is one, then names both by their hashes, and
    has the identity of each task's `data`.
    """
    files = {REPORT: json.dumps(report.as_json(), indent=2).encode() + b"\n"}
    outcomes = report.outcomes_as_json()
    (directory / OUTCOMES).unlink(missing_ok=True)
    if outcomes:
        files[OUTCOMES] = json.dumps(outcomes, separators=(",", ":")).encode() + b"\n"
        write_durably(directory / OUTCOMES, files[OUTCOMES])
    write_durably(directory / REPORT, files[REPORT])
    path = directory / PROVENANCE
    if path.is_file():
        evaluation = Evaluation(
            tasks=list(report.tasks),
            measured_on=report.measured_on,
            transductive=report.transductive,
            data=cast("dict[str, Any]", strip_folders(data)),
            files=file_digests(files),
        )
        write_durably(path, record_evaluation(path.read_bytes(), evaluation))
