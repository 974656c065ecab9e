"""One task's weights, from a model directory that has something beside the model for each task."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.run import RunInfo
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.planning.options import RunOptions
from fusion_core.planning.plan import plan_models
from fusion_core.plugins.manager import PluginManager, load_plugins
from fusion_core.recipe.config import AlignmentPolicy, choice_of
from fusion_core.recipe.text import RECIPE, load_recipe
from fusion_core.recipe.validation import validated
from fusion_core.running._context import run_nested
from fusion_core.weights import (
    AlignedSource,
    CheckpointSource,
    SerialExecutor,
    WeightSource,
    read_config,
    task_weights,
)
from fusion_core.weights.reading.task_masks import MASKS, SCALES
from fusion_core.weights.reading.task_tensors import TENSORS, tasks_in, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion_core.contracts.model_pool import ModelPool

    #: side files by name: tensors, or what JSON holds
    Found = Mapping[str, WeightSource | Mapping[str, Any]]


class TaskOwn(ABC):
    """What each task has for itself, beside a merge."""

    #: the tasks that have something
    tasks: Sequence[str]

    @abstractmethod
    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return the lazy weights that the merge has for one of these tasks."""


@dataclass(frozen=True)
class TaskMasks(TaskOwn):
    """Masks, a scale an expert, and the models merged."""

    packed: WeightSource
    scales: Mapping[str, float]
    pool: ModelPool[Any]

    @property
    def tasks(self) -> Sequence[str]:  # type: ignore[override] # the pool's to say
        """The experts' tasks, in the order of the masks."""
        return [self.pool.task_of(expert) for expert in self.scales]

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return base + scale * mask * (merge - base), in fp32."""
        number = self.tasks.index(task)
        scale = list(self.scales.values())[number]
        assert self.pool.base is not None  # noqa: S101 - the masks are of differences from it
        return task_weights(merged, self.pool.base, self.packed, number, scale)


@dataclass(frozen=True)
class TaskTensors(TaskOwn):
    """Tensors in the places of some of the merge's."""

    stored: WeightSource

    @property
    def tasks(self) -> Sequence[str]:  # type: ignore[override] # the file's to say
        """Those of the keys."""
        return tasks_in(self.stored)

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return the merge with the task's tensors, in the dtypes in which they are stored."""
        return AlignedSource(tensors_of(self.stored, task), merged)


def own_beside(directory: Path, models: Callable[[], ModelPool[Any]]) -> TaskOwn | None:
    """Return what tasks have of their own in a directory that was made of these models, if any."""
    paths = [path for name in (MASKS, SCALES, TENSORS) if (path := directory / name).is_file()]
    is_json = {path: path.suffix == ".json" for path in paths}
    found: Found = {
        path.name: read_config(path) if is_json[path] else CheckpointSource(path) for path in paths
    }
    return _own(found, models)


def own_recorded(directory: Path, plugins: PluginManager) -> TaskOwn | None:
    """Return it of a directory whose recipe says what it was made of; None without any."""
    return own_beside(directory, partial(_models_of, directory, plugins))


def own_among(
    side_files: Mapping[str, bytes | WeightSource], pool: ModelPool[Any]
) -> TaskOwn | None:
    """Return what a run of these models saved for tasks; None if that is nothing."""
    saved = {name: side_files[name] for name in (MASKS, SCALES, TENSORS) if name in side_files}
    found: Found = {
        name: json.loads(each) if isinstance(each, bytes) else each for name, each in saved.items()
    }
    return _own(found, lambda: pool)


def load_for_task(
    directory: str | Path, task: str, *, plugins: PluginManager | None = None
) -> WeightSource:
    """Return the lazy weights that a merged model has for one task.

    The directory holds the model and beside it masks and scales (`TaskMasks.weights_of`) or the
    tasks' own tensors; the base of masks is read where the directory's recipe has it, and merged
    anew where that is a recipe itself. A model pool's `build` makes a live model of them. Raises
    `CheckpointError` for a directory that has nothing for single tasks, `RecipeError` for a task
    that has nothing of its own.
    """
    directory = Path(directory)
    own = own_recorded(directory, plugins or load_plugins())
    if own is None:
        raise CheckpointError(
            f"{directory} has no {MASKS} or {TENSORS}: its model is the same for every task",
            hint="Load it as any model.",
        )
    if task not in own.tasks:
        raise RecipeError(
            f"{directory} has nothing of its own for task {task!r}",
            hint=f"It has that for: {', '.join(own.tasks)}.",
        )
    return own.weights_of(task, CheckpointSource(directory))


def _own(found: Found, models: Callable[[], ModelPool[Any]]) -> TaskOwn | None:
    packed, scales, tensors = (found.get(name) for name in (MASKS, SCALES, TENSORS))
    if isinstance(packed, WeightSource) and scales is not None:
        return TaskMasks(packed, scales["scales"], models())
    return TaskTensors(tensors) if isinstance(tensors, WeightSource) else None


def _models_of(directory: Path, plugins: PluginManager) -> ModelPool[Any]:
    """Return the models that a directory was made of, aligned as they were."""
    recipe = load_recipe(directory / RECIPE)
    pool, nested = plan_models(choice_of(recipe.get("model_pool")), plugins, RunOptions())
    merges, _ = run_nested(nested, RunInfo(recipe, None), SerialExecutor(), None)
    policy = validated(AlignmentPolicy, recipe.get("alignment", {}), prefix="alignment")
    return pool.with_sources(merges).aligned(policy)
