"""Task overrides: the weights or adapters with which a merged model serves a single task.

Modules that a method adds to live models (`AlgorithmSpec.modules_file`) override every task.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.feature_adapters import attach_adapter
from fusion_core.contracts.specs import AlgorithmSpec, load_target
from fusion_core.contracts.subject import Subject
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.plugins.manager import PluginManager, load_plugins
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.text import RECIPE
from fusion_core.running.lazy_merge import load_models
from fusion_core.weights import (
    AlignedSource,
    CheckpointSource,
    WeightSource,
    read_config,
    task_weights,
)
from fusion_core.weights.reading.task_files import (
    ADAPTED,
    ADAPTERS,
    TASK_FILES,
    TENSORS,
    list_tasks,
    select_task,
)
from fusion_core.weights.reading.task_masks import MASKS, SCALES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool


@dataclass(frozen=True)
class TaskOverrides:
    """Replacements of the merge for single tasks: other weights, or a changed live model."""

    #: the tasks that have overrides; None if all tasks have the same
    tasks: Sequence[str] | None
    #: returns the lazy weights of one of these tasks, given the merge
    weights_of: Callable[[str, WeightSource], WeightSource]
    #: changes a live model for one of these tasks; None if `weights_of` covers all of it
    adapt: Callable[[str, nn.Module], None] | None = None

    def subject(self, task: str, subject: Subject) -> Subject:
        """Return the model to measure on a task, given one with the task's weights."""
        adapt = self.adapt
        if adapt is None:
            return subject

        def build() -> nn.Module:
            model = subject.build()
            adapt(task, model)
            return model

        return Subject(build, device=subject.device)


def _by_masks(
    packed: WeightSource, scales: Mapping[str, float], pool: ModelPool[Any]
) -> TaskOverrides:
    """Return base + scale * mask * (merge - base), in fp32, with one mask and scale per expert."""
    base, tasks = pool.base, [pool.task_of(expert) for expert in scales]
    assert base is not None  # noqa: S101 - masks apply to differences from the base

    def weights_of(task: str, merged: WeightSource) -> WeightSource:
        number = tasks.index(task)
        return task_weights(merged, base, packed, number, [*scales.values()][number])

    return TaskOverrides(tasks, weights_of)


def _by_tensors(stored: WeightSource) -> TaskOverrides:
    """Return the merge with the tasks' own tensors, in their stored dtypes."""

    def weights_of(task: str, merged: WeightSource) -> WeightSource:
        return AlignedSource(select_task(stored, task), merged)

    return TaskOverrides(list_tasks(stored), weights_of)


def _by_modules(add_modules: Callable[[nn.Module], object]) -> TaskOverrides:
    """Return the merge with the modules that its method adds to live models."""

    def adapt(_task: str, model: nn.Module) -> None:
        add_modules(model)

    return TaskOverrides(None, lambda _, merged: merged, adapt)


def find_added_modules(
    files: Mapping[str, Any], plugins: PluginManager
) -> Callable[[nn.Module], object] | None:
    """Return the function that adds the modules in one of these files to live models, if any."""
    for component in plugins.components(AlgorithmSpec):
        file, target = component.spec.modules_file, component.spec.add_modules
        if file is not None and target is not None and file in files:
            with plugins.active():
                return partial(load_target(target), stored=files[file])
    return None


def read_added_modules(
    directory: Path, plugins: PluginManager
) -> Callable[[nn.Module], object] | None:
    """Return the function that adds the modules in a model's directory to live models, if any."""
    paths = [path for name in _module_files(plugins) if (path := directory / name).is_file()]
    return find_added_modules({path.name: CheckpointSource(path) for path in paths}, plugins)


def _by_adapters(stored: WeightSource, modules: Mapping[str, str]) -> TaskOverrides:
    """Return the merge with feature adapters. `modules` names the module that each one changes."""

    def adapt(task: str, model: nn.Module) -> None:
        tensors = select_task(stored, task)
        attach_adapter(model, modules[task], tensors.tensor("down"), tensors.tensor("up"))

    return TaskOverrides([*modules], lambda _, merged: merged, adapt)


def read_overrides(
    directory: Path, models: Callable[[], ModelPool[Any]], plugins: PluginManager
) -> TaskOverrides | None:
    """Return the task overrides in a directory that was merged from these models, if any."""
    names = _override_files(plugins)
    paths = [path for name in names if (path := directory / name).is_file()]
    contents = {
        path.name: read_config(path) if path.suffix == ".json" else CheckpointSource(path)
        for path in paths
    }
    return _overrides_from(contents, models, plugins)


def _override_files(plugins: PluginManager) -> list[str]:
    return [*TASK_FILES, *_module_files(plugins)]


def _module_files(plugins: PluginManager) -> Iterator[str]:
    specs = (component.spec for component in plugins.components(AlgorithmSpec))
    return (spec.modules_file for spec in specs if spec.modules_file is not None)


def read_recorded_overrides(
    directory: Path, plugins: PluginManager, *, trust: frozenset[str] | None = None
) -> TaskOverrides | None:
    """Return the task overrides in a directory, whose recipe names its models."""
    recipe = directory / RECIPE

    def models() -> ModelPool[Any]:
        return load_models(load_recipe(recipe), plugins, trust=trust)

    return read_overrides(directory, models, plugins)


def overrides_among(
    side_files: Mapping[str, bytes | WeightSource], pool: ModelPool[Any], plugins: PluginManager
) -> TaskOverrides | None:
    """Return the task overrides among the side files of a run in memory, if any."""
    names = _override_files(plugins)
    contents = {
        name: json.loads(content) if isinstance(content, bytes) else content
        for name, content in side_files.items()
        if name in names
    }
    return _overrides_from(contents, lambda: pool, plugins)


def _overrides_from(
    contents: Mapping[str, Any], models: Callable[[], ModelPool[Any]], plugins: PluginManager
) -> TaskOverrides | None:
    """Build overrides from side files: tensors as sources, JSON as data."""
    if (add_modules := find_added_modules(contents, plugins)) is not None:
        return _by_modules(add_modules)
    if MASKS in contents:
        return _by_masks(contents[MASKS], contents[SCALES]["scales"], models())
    if TENSORS in contents:
        return _by_tensors(contents[TENSORS])
    if ADAPTERS in contents:
        return _by_adapters(contents[ADAPTERS], contents[ADAPTED]["modules"])
    return None


def load_for_task(
    directory: str | Path, task: str, *, plugins: PluginManager | None = None
) -> WeightSource:
    """Return the lazy weights that a merged model has for one task.

    The directory holds the model and either masks and scales (`RunContext.save_task_masks`) or the
    tasks' own tensors. The base of masks is read from the path in the directory's recipe, or merged
    again if the base is itself a recipe. A model pool's `build` turns the weights into a live
    model.

    Raises `CheckpointError` for a directory without anything for single tasks, `RecipeError` for a
    task without anything of its own, and `RecipeError` for adapters, which weights cannot express.
    """
    directory = Path(directory)
    overrides = _overrides_for(directory, task, plugins or load_plugins())
    if overrides.adapt is not None:
        raise RecipeError(
            f"{directory} has an adapter or other modules for task {task!r}: they change a live "
            "model, which weights alone cannot express",
            hint="Build the live model: fusion_core.build_for_task(directory, task).",
        )
    return overrides.weights_of(task, CheckpointSource(directory))


def build_for_task(
    directory: str | Path,
    task: str = "",
    *,
    pool: ModelPool[Any] | None = None,
    device: torch.device | str = "cpu",
    plugins: PluginManager | None = None,
) -> nn.Module:
    """Return the live model of a merge for one task, in fp32 and in evaluation mode.

    Leave out `task` for a merge whose added modules serve all tasks, such as routers. `pool` builds
    the model. By default it is the pool in the directory's recipe. Raises the errors of
    `load_for_task`, but accepts adapters and modules.
    """
    directory, plugins = Path(directory), plugins or load_plugins()
    overrides = _overrides_for(directory, task, plugins)
    weights = overrides.weights_of(task, CheckpointSource(directory))
    models = pool or load_models(load_recipe(directory / RECIPE), plugins)
    return overrides.subject(task, Subject(lambda: models.build(weights, device=device))).model


def _overrides_for(directory: Path, task: str, plugins: PluginManager) -> TaskOverrides:
    overrides = read_recorded_overrides(directory, plugins)
    if overrides is None:
        raise CheckpointError(
            f"{directory} has no files for single tasks: its model is the same for every task",
            hint="Load it like any other model.",
        )
    if overrides.tasks is not None and task not in overrides.tasks:
        raise RecipeError(
            f"{directory} has nothing of its own for task {task!r}",
            hint=f"Expected one of: {', '.join(overrides.tasks)}.",
        )
    return overrides
