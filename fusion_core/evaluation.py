"""Measure a model on tasks, beside the base and the experts that it was made from.

Serves `fuse run`, which evaluates what it has just committed, and `fuse evaluate`, which measures
any directory that some model pool can build.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import hub
from fusion_core.blame import forbid_exit
from fusion_core.config import Choice, choice_of
from fusion_core.errors import FusionError, PluginError, RecipeError
from fusion_core.kernels import with_fast_products
from fusion_core.progress import Progress, noting
from fusion_core.ranks import own_gpu
from fusion_core.recipes import RECIPE, load_recipe
from fusion_core.resolving import Resolved, resolve_component, task_pool_of
from fusion_core.specs import AlgorithmSpec, ModelPoolSpec, TaskPoolSpec
from fusion_core.task_pool import REPORT, Metrics, Report, how_to_measure
from fusion_core.weights import CheckpointSource, WeightSource
from fusion_core.weights.disk import write_durably
from fusion_core.weights.shortage import explained

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.model_pool import ModelPool
    from fusion_core.plugins import PluginManager
    from fusion_core.task_pool import TaskPool

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
) -> Report:
    """Measure weights on every task, beside the pool's base and each task's own expert."""
    progress = progress or Progress()
    names = list(tasks.names)

    def measure(source: WeightSource, **options: Any) -> dict[str, Metrics]:  # noqa: ANN401
        model = with_fast_products(pool.build(source))
        return tasks.evaluate(model.to(device), **options)

    merged = measure(weights, label="evaluate merged", progress=progress)
    pretrained: dict[str, Metrics] = {}
    if pool.base is not None:
        pretrained = measure(pool.base, label="evaluate pretrained", progress=progress)
    experts = {pool.task_of(expert): source for expert, source in pool.experts.items()}
    individual: dict[str, Metrics] = {}
    owned = [name for name in names if name in experts]
    with progress.track("evaluate experts", total=len(owned)) as advance, noting(advance):
        for name in owned:
            individual |= measure(experts[name], tasks=[name])
            advance(1, note=name)
    return Report(merged, pretrained, individual, transductive, tasks.measured_on, tasks.published)


@forbid_exit()
def evaluate_directory(  # noqa: PLR0913 - what is measured, on what, where
    directory: Path,
    plugins: PluginManager,
    *,
    model_pool: Any = None,  # noqa: ANN401 - a name, or a mapping of name and options
    task_pool: Any = None,  # noqa: ANN401
    device: torch.device,
    progress: Progress | None = None,
) -> Report:
    """Measure a model directory; what is not said is taken from the recipe beside the weights.

    Without a recipe, the model pool is the one that goes with the task pool. Adds `report.json` to
    the directory if it is measured on what its own recipe names.
    """
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
    algorithm = _recorded(recipe, plugins)
    if algorithm is None and as_recorded:
        _check_unadapted(directory)
    adapted = algorithm is not None and sees_tasks(algorithm.component.spec)
    with hub.session(progress):
        tasks = chosen_tasks.create()
        check_tasks(tasks)
        check_data(tasks, chosen_tasks.component.plugin.distribution)
        if algorithm is not None:
            tasks = algorithm.create().tasks(tasks)
        report = evaluate(
            resolved.create(),
            tasks,
            weights,
            device=device,
            progress=progress,
            transductive=tasks.transductive if adapted else None,
        )
    if as_recorded:
        write_report(report, directory)
    return report


def write_report(report: Report, directory: Path) -> None:
    """Add `report.json` to a model directory, in one step."""
    data = json.dumps(report.as_json(), indent=2).encode() + b"\n"
    write_durably(directory / REPORT, data)


def sees_tasks(spec: AlgorithmSpec) -> bool:
    """Tell whether an algorithm looks at the tasks' data."""
    return spec.needs_tasks != "none"


def device_of(name: str) -> torch.device:
    """Return the torch device of a name; raises `RecipeError` if there is none here.

    `cuda` is, of several processes that torchrun started, each one's own.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.index is None and device.type == "cuda" and own_gpu() is not None:
        device = torch.device("cuda", own_gpu())
    index = device.index or 0
    if device.type == "cuda":
        if index < torch.cuda.device_count() and torch.cuda.is_available():
            return device
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        problem = f"torch finds {found or 'no'} CUDA device{'s' if found > 1 else ''} here"
        raise RecipeError(f"device {name!r}: {problem}", hint="Use cpu.")
    usable = device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())
    if index or not usable:  # `meta`, say, holds no values
        raise RecipeError(f"device {name!r}: no such device", hint="Use cpu, cuda or cuda:1.")
    return device


def check_tasks(tasks: TaskPool[Any]) -> None:
    """Raise `RecipeError` for a pool without tasks: there is nothing to measure or to adapt on."""
    if not len(tasks):
        raise RecipeError(
            "the task pool has no tasks", hint="Name some with --tasks; see: fuse list tasks"
        )


def check_data(tasks: TaskPool[Any], plugin: str) -> None:
    """Raise a `FusionError` naming plugin and task if a task's data is not there."""
    try:
        tasks.check()
    except FusionError as error:
        raise type(error)(f"{plugin}: {error.message}", hint=error.hint) from error


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
        f"how to build the model in {directory} is not recorded: it may be of any class",
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


def _recorded(recipe: Mapping[str, Any], plugins: PluginManager) -> Resolved[AlgorithmSpec] | None:
    """Return the algorithm that a recipe names; one that is not here saw no tasks, for all we know.

    Raises `RecipeError` for options that it does not have: they may say what it has seen.
    """
    choice = choice_of(recipe.get("algorithm"))
    if choice.name is None:
        return None
    try:
        return resolve_component(AlgorithmSpec, choice, plugins, section="algorithm")
    except PluginError:
        return None
