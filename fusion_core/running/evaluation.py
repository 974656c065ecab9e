"""Measure a model on tasks, together with the base and the experts that it was merged from.

`fuse run` evaluates what it has committed. `fuse evaluate` measures any directory that a model pool
can build.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.contracts.measurements import Reference
from fusion_core.contracts.outcomes import OUTCOMES
from fusion_core.contracts.report import REPORT, Report, measuring_hint
from fusion_core.contracts.run import RunInfo
from fusion_core.contracts.specs import AlgorithmSpec, ModelPoolSpec, OutputSpec, TaskPoolSpec
from fusion_core.errors import PluginError, RecipeError
from fusion_core.machine.attribution import forbid_exit
from fusion_core.planning.needs import check_data, check_tasks, uses_tasks
from fusion_core.planning.plan import name_plans, resolve_models
from fusion_core.planning.resolution import choose_task_pool, resolve_component, resolve_form
from fusion_core.planning.resolved_recipe import Resolved
from fusion_core.planning.run_options import RunOptions
from fusion_core.planning.trust import (
    check_trust_names,
    check_trusted,
    collect_needs,
    trust_in_environment,
)
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.progress import Progress
from fusion_core.recipe.config import (
    AlignmentPolicy,
    Choice,
    OutputSection,
    choice_of,
    choices_of,
)
from fusion_core.recipe.text import RECIPE
from fusion_core.recipe.validation import validate
from fusion_core.running._context import run_nested
from fusion_core.running._evaluator import Evaluator
from fusion_core.running.task_overrides import TaskOverrides, read_recorded_overrides
from fusion_core.weights import CheckpointSource, SerialExecutor, WeightSource
from fusion_core.weights.merging.memory_errors import report_out_of_memory
from fusion_core.weights.reading.assets import list_side_files
from fusion_core.weights.writing.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from fusion_core.contracts.measurements import Metric
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.nested import RecipeSource
    from fusion_core.planning.run_plan import Plan
    from fusion_core.plugins.manager import PluginManager

_CHECKPOINTS = "checkpoints"
_LOG = logging.getLogger(__name__)


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
) -> Report:
    """Measure weights on every task, and the pool's base and each task's own expert.

    Tasks with `overrides` are measured with them. Known scores come from the cache unless `fresh`
    is set.
    """
    evaluator = Evaluator(pool, tasks, device, progress or Progress(), fresh)
    return Report(
        evaluator.measure_merge(weights, overrides),
        Reference(evaluator.measure_base(), evaluator.measure_experts()),
        transductive,
        tasks.measured_on,
        tasks.published,
        _metrics(tasks),
        evaluator.remembered,
        needs_task=overrides is not None,
        conditions={task.name: dict(task.conditions) for task in tasks if task.conditions},
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
        metrics=_metrics(tasks),
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

    Without a model pool that builds models, the one whose default task pool is given does. A pool
    of checkpoints without models takes those of the recipe in the directory, or else the measured
    model alone. Writes `report.json` into the directory if the pools are those of its own recipe.

    `trust` is that of `RunOptions`, by default the environment's. Raises `RecipeError` for
    components that need trust that is not given.
    """
    trust = trust_in_environment() if trust is None else trust
    check_trust_names(trust, plugins)
    recorded = load_recorded_recipe(directory)
    recipe = recorded if recipe is None else recipe
    form = _recorded_form(recorded, plugins)
    # the first look at the directory itself names it in the system's errors
    written = form or CheckpointSource(directory)
    is_other = {
        name: recipe.get(name) != recorded.get(name) for name in ("model_pool", "task_pool")
    }
    as_recorded = bool(recorded) and not any(is_other.values())
    tasks_choice, pool_choice = (
        choice_of(recipe.get(name)) for name in ("task_pool", "model_pool")
    )
    if _builds_nothing(pool_choice, plugins):
        tasks_choice = Choice() if is_other["model_pool"] else tasks_choice
        pool_choice = _find_pool(tasks_choice, plugins, directory)
    pool_choice = _with_models(
        pool_choice, choice_of(recorded.get("model_pool")), plugins, directory
    )
    options = RunOptions(device=str(device), evaluate=False, trust=trust, fresh=fresh)
    resolved_pool, nested = resolve_models(pool_choice, plugins, options)
    tasks_choice = choose_task_pool(tasks_choice, resolved_pool)
    if tasks_choice.name is None:
        raise RecipeError(
            "no tasks to evaluate on",
            hint="Name a task pool with --task-pool; see: fuse list tasks",
        )
    resolved_tasks = resolve_component(TaskPoolSpec, tasks_choice, plugins, section="task_pool")
    stages = _recorded_stages(recorded, plugins)
    if not stages and as_recorded:
        _check_not_adapted(directory)
    adapted = any(uses_tasks(stage.component.spec) for stage in stages)
    check_trusted(collect_needs([resolved_pool, resolved_tasks, form, *stages]), trust)
    with hub.session(progress):
        pool = _create_models(resolved_pool, nested, recipe)
        weights = (
            written.create().decode(directory, pool) if isinstance(written, Resolved) else written
        )
        for difference in pool.describe_differences(weights, list_side_files(directory)):
            _LOG.warning("measured with the files of %s: %s", pool.reference.describe(), difference)
        tasks = resolved_tasks.create().bind(pool)
        check_tasks(tasks)
        check_data(tasks, resolved_tasks.component.plugin.distribution)
        for stage in stages:
            tasks = stage.create().tasks(tasks)
        report = evaluate(
            pool,
            tasks,
            weights,
            device=device,
            progress=progress,
            transductive=tasks.transductive if adapted else None,
            fresh=fresh,
            overrides=read_recorded_overrides(directory, plugins, trust=trust),
        )
    if as_recorded:
        write_report(report, directory)
    return report


def _metrics(tasks: TaskPool[Any]) -> dict[str, dict[str, Metric]]:
    return {
        task.name: {metric.name: metric for metric in task.metrics}
        for task in tasks
        if task.metrics
    }


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json` and, if tasks have outcomes, `outcomes.json` into a model directory.

    Each file is written in one step. The report comes last, so that it never lies next to the
    outcomes of another report.
    """
    outcomes = report.outcomes_as_json()
    (directory / OUTCOMES).unlink(missing_ok=True)
    if outcomes:
        data = json.dumps(outcomes, separators=(",", ":")).encode() + b"\n"
        write_durably(directory / OUTCOMES, data)
    data = json.dumps(report.as_json(), indent=2).encode() + b"\n"
    write_durably(directory / REPORT, data)


def _builds_nothing(pool: Choice, plugins: PluginManager) -> bool:
    """Tell whether there is no model pool, or only that of checkpoints, which has no class."""
    return pool.name is None or plugins.find(ModelPoolSpec, pool.name).spec.name == _CHECKPOINTS


def _find_pool(tasks: Choice, plugins: PluginManager, directory: Path) -> Choice:
    """Return the model pool whose default task pool has this name."""
    name = plugins.find(TaskPoolSpec, tasks.name).spec.name if tasks.name else None
    for component in plugins.components(ModelPoolSpec):
        if name is not None and component.spec.default_task_pool == name:
            return Choice(name=component.qualified_name)
    hints = [measuring_hint(directory)]
    names = tasks.options.get("tasks") if name is None else None
    for component in plugins.components(TaskPoolSpec) if names else ():
        spec = component.spec
        if spec.name in names or set(names) <= set(spec.tasks):
            hints.insert(0, f"If you mean tasks of {spec.name}, add: --task-pool {spec.name}")
    raise RecipeError(
        f"cannot build the model in {directory}: its class is unknown", hint="\n".join(hints)
    )


def _with_models(pool: Choice, recorded: Choice, plugins: PluginManager, directory: Path) -> Choice:
    """Return a pool of checkpoints with models: its own, the recorded ones, or the measured one."""
    known = plugins.find(ModelPoolSpec, pool.name or "").load_config().model_fields.keys()
    if not {"base", "models"} <= known or "models" in pool.options:
        return pool
    models = {
        name: recorded.options[name] for name in ("base", "models") if name in recorded.options
    }
    if "models" not in models:
        models = {"models": {} if "base" in pool.options else {"model": str(directory)}}
    return Choice(name=pool.name, **{**models, **pool.options})


def _create_models(
    resolved: Resolved[ModelPoolSpec],
    plans: Mapping[RecipeSource, Plan],
    recipe: Mapping[str, Any],
) -> ModelPool[Any]:
    """Return the models as a run of the recipe has them: nested recipes merged, and aligned."""
    pool: ModelPool[Any] = resolved.create()
    info = RunInfo(recipe, None)
    merges, _, _ = run_nested(name_plans(plans, pool), info, SerialExecutor(), None)
    policy = validate(AlignmentPolicy, recipe.get("alignment") or {}, prefix="alignment")
    pool = pool.with_sources(merges)
    return pool.aligned(policy) if pool.experts else pool


def load_recorded_recipe(directory: Path) -> dict[str, Any]:
    """Return the recipe that a run left in its output; an empty one for another directory."""
    path = directory / RECIPE
    return load_recipe(path) if directory.is_dir() and path.is_file() else {}


def _check_not_adapted(directory: Path) -> None:
    """Raise `PluginError` if the model may have adapted to tasks.

    A new report could not say to which.
    """
    path = directory / REPORT
    if not path.is_file():
        return
    try:
        adapted = Report.from_json(json.loads(path.read_bytes())).transductive is not None
    except (OSError, ValueError, RecursionError):  # an unreadable report: assume the worst
        adapted = True
    if adapted:
        raise PluginError(
            f"the algorithm that made {directory} is not installed, and its model may have "
            "adapted to the tasks",
            hint="Install its plugin, or name --task-pool to show scores without recording them.",
        )


def _recorded_form(
    recipe: Mapping[str, Any], plugins: PluginManager
) -> Resolved[OutputSpec] | None:
    """Return the form in which the model of a recipe is written, None for a full model."""
    output = validate(OutputSection, recipe.get("output") or {}, prefix="output")
    return resolve_form(output.forms, plugins)


def _recorded_stages(
    recipe: Mapping[str, Any], plugins: PluginManager
) -> list[Resolved[AlgorithmSpec]]:
    """Return the stages of a recipe, or none if one of them is not installed.

    Raises `RecipeError` for unknown options, because options determine what a stage sees.
    """
    choices = [choice for choice in choices_of(recipe.get("algorithm")) if choice.name is not None]
    try:
        return [
            resolve_component(AlgorithmSpec, choice, plugins, section="algorithm")
            for choice in choices
        ]
    except PluginError:
        return []
