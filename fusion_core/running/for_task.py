"""What a merge is for one task, where a directory has something beside the model for each."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.features import put_adapter
from fusion_core.contracts.subject import Subject
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.plugins.manager import PluginManager, load_plugins
from fusion_core.recipe.text import RECIPE, load_recipe
from fusion_core.running.by_hand import models_of
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
    tasks_in,
    tensors_of,
)
from fusion_core.weights.reading.task_masks import MASKS, SCALES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool

    #: side files by name: tensors, or what JSON holds
    Found = Mapping[str, Any]


class TaskOwn(ABC):
    """What each task has for itself, beside a merge: other weights, or a change of a live model."""

    #: whether it is all in `weights_of`
    is_weights = True

    @property
    @abstractmethod
    def tasks(self) -> Sequence[str]:
        """The tasks that have something."""

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return the lazy weights that a merge has for one of these tasks."""
        del task
        return merged

    def subject(self, task: str, subject: Subject) -> Subject:
        """Return what is measured on a task, of what has its weights."""
        del task
        return subject


@dataclass(frozen=True)
class TaskMasks(TaskOwn):
    """Masks, a scale an expert, and the models merged."""

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
        assert self.pool.base is not None  # noqa: S101 - the masks are of differences from it
        return task_weights(merged, self.pool.base, self.packed, number, scale)


@dataclass(frozen=True)
class TaskTensors(TaskOwn):
    """Tensors in the places of some of the merge's."""

    stored: WeightSource

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks that have tensors."""
        return tasks_in(self.stored)

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return the merge with the task's tensors, in the dtypes in which they are stored."""
        return AlignedSource(tensors_of(self.stored, task), merged)


@dataclass(frozen=True)
class TaskAdapters(TaskOwn):
    """Adapters of features, and by task the module whose output these are."""

    stored: WeightSource
    modules: Mapping[str, str]
    is_weights = False

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks that have an adapter."""
        return list(self.modules)

    def subject(self, task: str, subject: Subject) -> Subject:
        """Return the live model with its features going through the task's adapter."""
        own = tensors_of(self.stored, task)

        def build() -> nn.Module:
            model = subject.build()
            put_adapter(model, self.modules[task], own.tensor("down"), own.tensor("up"))
            return model

        return Subject(build, device=subject.device)


def own_beside(directory: Path, models: Callable[[], ModelPool[Any]]) -> TaskOwn | None:
    """Return what tasks have of their own in a directory that was made of these models, if any."""
    paths = [path for name in TASK_FILES if (path := directory / name).is_file()]
    found = {
        path.name: read_config(path) if path.suffix == ".json" else CheckpointSource(path)
        for path in paths
    }
    return _own(found, models)


def own_recorded(
    directory: Path, plugins: PluginManager, *, trust: frozenset[str] | None = None
) -> TaskOwn | None:
    """Return it of a directory whose recipe says what it was made of; None without any."""
    recipe = directory / RECIPE
    return own_beside(directory, lambda: models_of(load_recipe(recipe), plugins, trust=trust))


def own_among(
    side_files: Mapping[str, bytes | WeightSource], pool: ModelPool[Any]
) -> TaskOwn | None:
    """Return what a run of these models saved for tasks; None if that is nothing."""
    saved = {name: side_files[name] for name in TASK_FILES if name in side_files}
    found = {n: json.loads(each) if isinstance(each, bytes) else each for n, each in saved.items()}
    return _own(found, lambda: pool)


def load_for_task(
    directory: str | Path, task: str, *, plugins: PluginManager | None = None
) -> WeightSource:
    """Return the lazy weights that a merged model has for one task.

    The directory holds the model and beside it masks and scales (`TaskMasks.weights_of`) or the
    tasks' own tensors; the base of masks is read where the directory's recipe has it, and merged
    anew where that is a recipe itself. A model pool's `build` makes a live model of them. Raises
    `CheckpointError` for a directory that has nothing for single tasks, `RecipeError` for a task
    that has nothing of its own, and for adapters: no weights hold those.
    """
    directory = Path(directory)
    own = _own_of(directory, task, plugins or load_plugins())
    if not own.is_weights:
        raise RecipeError(
            f"{directory} has an adapter for task {task!r}: it works on a live model's features, "
            "and the weights alone are another model",
            hint="Build the live model: fusion_core.build_for_task(directory, task).",
        )
    return own.weights_of(task, CheckpointSource(directory))


def build_for_task(
    directory: str | Path,
    task: str,
    *,
    pool: ModelPool[Any] | None = None,
    device: torch.device | str = "cpu",
    plugins: PluginManager | None = None,
) -> nn.Module:
    """Return the live model that a merge is for one task, in fp32 and in evaluation mode.

    `pool` builds it; by default the one of the directory's recipe. Raises what `load_for_task`
    raises, but takes adapters as well.
    """
    directory, plugins = Path(directory), plugins or load_plugins()
    own = _own_of(directory, task, plugins)
    weights = own.weights_of(task, CheckpointSource(directory))
    models = pool or models_of(load_recipe(directory / RECIPE), plugins)
    return own.subject(task, Subject(lambda: models.build(weights, device=device))).model


def _own_of(directory: Path, task: str, plugins: PluginManager) -> TaskOwn:
    own = own_recorded(directory, plugins)
    if own is None:
        raise CheckpointError(
            f"{directory} has nothing beside its model for single tasks: its model is the same for "
            "every task",
            hint="Load it as any model.",
        )
    if task not in own.tasks:
        raise RecipeError(
            f"{directory} has nothing of its own for task {task!r}",
            hint=f"It has that for: {', '.join(own.tasks)}.",
        )
    return own


def _own(found: Found, models: Callable[[], ModelPool[Any]]) -> TaskOwn | None:
    if MASKS in found:
        return TaskMasks(found[MASKS], found[SCALES]["scales"], models())
    if TENSORS in found:
        return TaskTensors(found[TENSORS])
    if ADAPTERS in found:
        return TaskAdapters(found[ADAPTERS], found[ADAPTED]["modules"])
    return None
