"""Measure a model on tasks, beside the base and the experts that it was made from.

Serves `fuse run`, which evaluates what it has just committed, and `fuse evaluate`, which measures
any directory that some model pool can build.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.contracts.outcomes import OUTCOMES
from fusion_core.contracts.report import REPORT, Report, how_to_measure
from fusion_core.contracts.specs import AlgorithmSpec, ModelPoolSpec, TaskPoolSpec
from fusion_core.errors import PluginError, RecipeError
from fusion_core.machine.attribution import forbid_exit
from fusion_core.planning.needs import check_data, check_tasks, sees_tasks
from fusion_core.planning.resolving import resolve_component, task_pool_of
from fusion_core.planning.trust import check_known, check_trusted, needs_of, trust_in_environment
from fusion_core.progress import Progress
from fusion_core.recipe.config import Choice, choice_of, choices_of
from fusion_core.recipe.text import RECIPE, load_recipe
from fusion_core.running._rows import Rows
from fusion_core.running.for_task import TaskOwn, own_recorded
from fusion_core.weights import CheckpointSource, WeightSource
from fusion_core.weights.merging.shortage import explained
from fusion_core.weights.writing.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from fusion_core.contracts.measures import Metric
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.resolved import Resolved
    from fusion_core.plugins.manager import PluginManager

_CHECKPOINTS = "checkpoints"


@explained()
@forbid_exit()
def evaluate(  # noqa: PLR0913 - what is measured, on what, where
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    weights: WeightSource,
    *,
    device: torch.device,
    progress: Progress | None = None,
    transductive: bool | None = None,
    fresh: bool = False,
    own: TaskOwn | None = None,
) -> Report:
    """Measure weights on every task, beside the pool's base and each task's own expert.

    With `own`, tasks that have something of their own are measured with it. What an earlier run
    measured of base and experts is remembered, unless it is to be `fresh`.
    """
    rows = Rows(pool, tasks, device, progress or Progress(), fresh)
    return Report(
        rows.of_merge(weights, own),
        rows.of_base(),
        rows.of_experts(),
        transductive,
        tasks.measured_on,
        tasks.published,
        _metrics(tasks),
        rows.remembered,
        needs_task=own is not None,
        conditions={task.name: dict(task.conditions) for task in tasks if task.conditions},
    )


@explained()
@forbid_exit()
def evaluate_experts(
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    names: Sequence[str],
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Report:
    """Measure each task's own expert on some tasks, beside the base, before anything is merged.

    Later runs of the same pools remember these figures, and this remembers theirs.
    """
    rows = Rows(pool, tasks, device, progress or Progress(), names=tuple(names))
    experts = rows.of_experts()
    return Report(
        experts, rows.of_base(), experts, metrics=_metrics(tasks), measured_on=tasks.measured_on
    )


@forbid_exit()
def evaluate_directory(  # noqa: PLR0913 - what is measured, on what, where
    directory: Path,
    plugins: PluginManager,
    *,
    model_pool: Any = None,  # noqa: ANN401 - a name, or a mapping of name and options
    task_pool: Any = None,  # noqa: ANN401
    device: torch.device,
    progress: Progress | None = None,
    fresh: bool = False,
    trust: frozenset[str] | None = None,
) -> Report:
    """Measure a model directory; what is not said is taken from the recipe beside the weights.

    Without a recipe, the model pool is the one that goes with the task pool. Adds `report.json` to
    the directory if it is measured on what its own recipe names. `trust` is that of `RunOptions`,
    by default the environment's; raises `RecipeError` for what needs trust that is not given.
    """
    trust = trust_in_environment() if trust is None else trust
    check_known(trust, plugins)
    weights = CheckpointSource(directory)
    recipe = load_recipe(directory / RECIPE) if (directory / RECIPE).is_file() else {}
    as_recorded = bool(recipe) and model_pool is None and task_pool is None
    tasks_choice = choice_of(task_pool if task_pool is not None else recipe.get("task_pool"))
    pool_choice = choice_of(model_pool if model_pool is not None else recipe.get("model_pool"))
    if _builds_nothing(pool_choice, plugins):
        named = tasks_choice if model_pool is None else Choice()
        pool_choice = _pool_for(named, plugins, directory)
    resolved = resolve_component(ModelPoolSpec, pool_choice, plugins, section="model_pool")
    tasks_choice = task_pool_of(tasks_choice, resolved)
    if tasks_choice.name is None:
        raise RecipeError(
            "no tasks to evaluate on",
            hint="Name a task pool with --task-pool; see: fuse list tasks",
        )
    chosen_tasks = resolve_component(TaskPoolSpec, tasks_choice, plugins, section="task_pool")
    stages = _recorded(recipe, plugins)
    if not stages and as_recorded:
        _check_unadapted(directory)
    adapted = any(sees_tasks(stage.component.spec) for stage in stages)
    check_trusted(needs_of([resolved, chosen_tasks, *stages]), trust)
    with hub.session(progress):
        pool = resolved.create()
        tasks = chosen_tasks.create().bind(pool)
        check_tasks(tasks)
        check_data(tasks, chosen_tasks.component.plugin.distribution)
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
            own=own_recorded(directory, plugins, trust=trust),
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
    """Add `report.json` and, where tasks keep some, `outcomes.json` to a model directory.

    Each is there in one step; the report comes last, so that no other one's outcomes lie beside it.
    """
    outcomes = report.outcomes_as_json()
    (directory / OUTCOMES).unlink(missing_ok=True)
    if outcomes:
        data = json.dumps(outcomes, separators=(",", ":")).encode() + b"\n"
        write_durably(directory / OUTCOMES, data)
    data = json.dumps(report.as_json(), indent=2).encode() + b"\n"
    write_durably(directory / REPORT, data)


def _builds_nothing(pool: Choice, plugins: PluginManager) -> bool:
    """Tell whether a pool knows no class of models: none, or that of any checkpoints."""
    return pool.name is None or plugins.find(ModelPoolSpec, pool.name).spec.name == _CHECKPOINTS


def _pool_for(tasks: Choice, plugins: PluginManager, directory: Path) -> Choice:
    """Return the model pool whose default task pool this is."""
    known = plugins.find(TaskPoolSpec, tasks.name).spec.name if tasks.name else None
    for component in plugins.components(ModelPoolSpec):
        if known is not None and component.spec.default_task_pool == known:
            return Choice(name=component.qualified_name)
    raise RecipeError(
        f"cannot build the model in {directory}: its class is unknown",
        hint=how_to_measure(directory),
    )


def _check_unadapted(directory: Path) -> None:
    """Raise `PluginError` unless the model is known to have adapted on nothing.

    What it has adapted on would be missing from a report made anew.
    """
    path = directory / REPORT
    if not path.is_file():
        return
    try:
        adapted = Report.from_json(json.loads(path.read_bytes())).transductive is not None
    except (OSError, ValueError, RecursionError):  # who knows
        adapted = True
    if adapted:
        raise PluginError(
            f"the algorithm that made {directory} is not here, and its model has adapted on tasks "
            "for all that is known",
            hint="Install its plugin, or name --task-pool: figures are then shown, not recorded.",
        )


def _recorded(recipe: Mapping[str, Any], plugins: PluginManager) -> list[Resolved[AlgorithmSpec]]:
    """Return the stages that a recipe names, none if one is not here: it may have seen tasks.

    Raises `RecipeError` for options that one does not have: they may say what it has seen.
    """
    choices = [choice for choice in choices_of(recipe.get("algorithm")) if choice.name is not None]
    try:
        return [
            resolve_component(AlgorithmSpec, choice, plugins, section="algorithm")
            for choice in choices
        ]
    except PluginError:
        return []
