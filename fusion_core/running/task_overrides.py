"""Task overrides: the weights or adapters with which a merged model serves a single task."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.feature_adapters import attach_adapter
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
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool


class TaskOverrides(ABC):
    """Replacements of the merge for single tasks: other weights, or a changed live model."""

    #: whether `weights_of` covers all of it
    is_weights = True

    @property
    @abstractmethod
    def tasks(self) -> Sequence[str]:
        """The tasks that have overrides."""

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return the lazy weights of one of these tasks."""
        del task
        return merged

    def subject(self, task: str, subject: Subject) -> Subject:
        """Return the model to measure on a task, given one with the task's weights."""
        del task
        return subject


@dataclass(frozen=True)
class TaskMasks(TaskOverrides):
    """Masks, one scale per expert, and the models that were merged."""

    packed: WeightSource
    scales: Mapping[str, float]
    pool: ModelPool[Any]

    @property
    def tasks(self) -> Sequence[str]:
        """The experts' tasks, in the order of the masks."""
        return [self.pool.task_of(expert) for expert in self.scales]

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return base + scale * mask * (merge - base), in fp32."""
        number = self.tasks.index(task)
        scale = list(self.scales.values())[number]
        assert self.pool.base is not None  # noqa: S101 - masks apply to differences from the base
        return task_weights(merged, self.pool.base, self.packed, number, scale)


@dataclass(frozen=True)
class TaskTensors(TaskOverrides):
    """Tensors that replace some of the merge's."""

    stored: WeightSource

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks that have tensors."""
        return list_tasks(self.stored)

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return the merge with the task's tensors, in their stored dtypes."""
        return AlignedSource(select_task(self.stored, task), merged)


@dataclass(frozen=True)
class TaskAdapters(TaskOverrides):
    """Feature adapters, and the module whose output each task's adapter changes."""

    stored: WeightSource
    modules: Mapping[str, str]
    is_weights = False

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks that have an adapter."""
        return list(self.modules)

    def subject(self, task: str, subject: Subject) -> Subject:
        """Return the live model with the task's adapter applied to its features."""
        tensors = select_task(self.stored, task)

        def build() -> nn.Module:
            model = subject.build()
            attach_adapter(model, self.modules[task], tensors.tensor("down"), tensors.tensor("up"))
            return model

        return Subject(build, device=subject.device)


def read_overrides(directory: Path, models: Callable[[], ModelPool[Any]]) -> TaskOverrides | None:
    """Return the task overrides in a directory that was merged from these models, if any."""
    paths = [path for name in TASK_FILES if (path := directory / name).is_file()]
    contents = {
        path.name: read_config(path) if path.suffix == ".json" else CheckpointSource(path)
        for path in paths
    }
    return _overrides_from(contents, models)


def read_recorded_overrides(
    directory: Path, plugins: PluginManager, *, trust: frozenset[str] | None = None
) -> TaskOverrides | None:
    """Return the task overrides in a directory, whose recipe names its models."""
    recipe = directory / RECIPE
    return read_overrides(directory, lambda: load_models(load_recipe(recipe), plugins, trust=trust))


def overrides_among(
    side_files: Mapping[str, bytes | WeightSource], pool: ModelPool[Any]
) -> TaskOverrides | None:
    """Return the task overrides among the side files of a run in memory, if any."""
    contents = {
        name: json.loads(content) if isinstance(content, bytes) else content
        for name, content in side_files.items()
        if name in TASK_FILES
    }
    return _overrides_from(contents, lambda: pool)


def _overrides_from(
    contents: Mapping[str, Any], models: Callable[[], ModelPool[Any]]
) -> TaskOverrides | None:
    """Build overrides from side files: tensors as sources, JSON as data."""
    if MASKS in contents:
        return TaskMasks(contents[MASKS], contents[SCALES]["scales"], models())
    if TENSORS in contents:
        return TaskTensors(contents[TENSORS])
    if ADAPTERS in contents:
        return TaskAdapters(contents[ADAPTERS], contents[ADAPTED]["modules"])
    return None


def load_for_task(
    directory: str | Path, task: str, *, plugins: PluginManager | None = None
) -> WeightSource:
    """Return the lazy weights that a merged model has for one task.

    The directory holds the model and either masks and scales (`TaskMasks.weights_of`) or the tasks'
    own tensors. The base of masks is read from the path in the directory's recipe, or merged again
    if the base is itself a recipe. A model pool's `build` turns the weights into a live model.

    Raises `CheckpointError` for a directory without anything for single tasks, `RecipeError` for a
    task without anything of its own, and `RecipeError` for adapters, which weights cannot express.
    """
    directory = Path(directory)
    overrides = _overrides_for(directory, task, plugins or load_plugins())
    if not overrides.is_weights:
        raise RecipeError(
            f"{directory} has an adapter for task {task!r}: it changes a live model's features, "
            "which weights alone cannot express",
            hint="Build the live model: fusion_core.build_for_task(directory, task).",
        )
    return overrides.weights_of(task, CheckpointSource(directory))


def build_for_task(
    directory: str | Path,
    task: str,
    *,
    pool: ModelPool[Any] | None = None,
    device: torch.device | str = "cpu",
    plugins: PluginManager | None = None,
) -> nn.Module:
    """Return the live model that a merge is for one task, in fp32 and in evaluation mode.

    `pool` builds the model. By default it is the pool in the directory's recipe. Raises the errors
    of `load_for_task`, but accepts adapters.
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
    if task not in overrides.tasks:
        raise RecipeError(
            f"{directory} has nothing of its own for task {task!r}",
            hint=f"Expected one of: {', '.join(overrides.tasks)}.",
        )
    return overrides
