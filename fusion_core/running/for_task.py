"""One task's weights, from a model directory that has task masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
    CheckpointSource,
    SerialExecutor,
    WeightSource,
    read_config,
    task_weights,
)
from fusion_core.weights.reading.task_masks import MASKS, SCALES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.model_pool import ModelPool


@dataclass(frozen=True)
class TaskMasks:
    """What makes one task's weights of a merge: masks, a scale an expert, and the models merged."""

    packed: WeightSource
    scales: Mapping[str, float]
    pool: ModelPool[Any]

    @classmethod
    def beside(cls, directory: Path, pool: ModelPool[Any]) -> TaskMasks | None:
        """Return those that lie in a directory that was made of a pool; None if it has none."""
        if not (directory / MASKS).is_file():
            return None
        packed, scales = CheckpointSource(directory / MASKS), read_config(directory / SCALES)
        return cls(packed, scales["scales"], pool)

    @classmethod
    def recorded(cls, directory: Path, plugins: PluginManager) -> TaskMasks | None:
        """Return those of a directory whose recipe says what it was made of; None without any."""
        if not (directory / MASKS).is_file():
            return None
        return cls.beside(directory, _models_of(directory, plugins))

    @classmethod
    def among(
        cls, side_files: Mapping[str, bytes | WeightSource], pool: ModelPool[Any]
    ) -> TaskMasks | None:
        """Return those that a run of these models saved; None if it saved none."""
        packed, scales = side_files.get(MASKS), side_files.get(SCALES)
        if not isinstance(packed, WeightSource) or not isinstance(scales, bytes):
            return None
        return cls(packed, json.loads(scales)["scales"], pool)

    def weights_of(self, task: str, merged: WeightSource) -> WeightSource:
        """Return base + scale * mask * (merge - base), lazy and in fp32.

        Raises `RecipeError` for a task without masks.
        """
        tasks = [self.pool.task_of(expert) for expert in self.scales]
        if task not in tasks:
            raise RecipeError(
                f"{merged.describe()} has no masks for task {task!r}",
                hint=f"It has them for: {', '.join(tasks)}.",
            )
        number = tasks.index(task)
        scale = list(self.scales.values())[number]
        assert self.pool.base is not None  # noqa: S101 - the masks are of differences from it
        return task_weights(merged, self.pool.base, self.packed, number, scale)


def load_for_task(
    directory: str | Path, task: str, *, plugins: PluginManager | None = None
) -> WeightSource:
    """Return the lazy weights that a merged model has for one task, in fp32.

    The directory holds the model, the masks and the scales (`TaskMasks.weights_of`); the base is
    read where the directory's recipe has it, and merged anew where that is a recipe itself. A model
    pool's `build` makes a live model of them. Raises `CheckpointError` for a directory without task
    masks, `RecipeError` for a task that has none.
    """
    directory = Path(directory)
    masks = TaskMasks.recorded(directory, plugins or load_plugins())
    if masks is None:
        raise CheckpointError(
            f"{directory} has no {MASKS}: its model is the same for every task",
            hint="Load it as any model.",
        )
    return masks.weights_of(task, CheckpointSource(directory))


def _models_of(directory: Path, plugins: PluginManager) -> ModelPool[Any]:
    """Return the models that a directory was made of, aligned as they were."""
    recipe = load_recipe(directory / RECIPE)
    pool, nested = plan_models(choice_of(recipe.get("model_pool")), plugins, RunOptions())
    merges, _ = run_nested(nested, RunInfo(recipe, None), SerialExecutor(), None)
    policy = validated(AlignmentPolicy, recipe.get("alignment", {}), prefix="alignment")
    return pool.with_sources(merges).aligned(policy)
