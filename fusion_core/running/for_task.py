"""One task's weights, from a model directory that has task masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.planning.resolving import resolve_component
from fusion_core.plugins.manager import PluginManager, load_plugins
from fusion_core.recipe.config import AlignmentPolicy, choice_of
from fusion_core.recipe.text import RECIPE, load_recipe
from fusion_core.recipe.validation import validated
from fusion_core.weights import CheckpointSource, WeightSource, read_config, task_weights
from fusion_core.weights.reading.task_masks import MASKS, SCALES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.model_pool import ModelPool


def load_for_task(
    directory: str | Path, task: str, *, plugins: PluginManager | None = None
) -> WeightSource:
    """Return the lazy weights that a merged model has for one task, in fp32.

    They are base + scale * mask * (model - base): the directory holds the model, the masks and the
    scales; the base is read where the directory's recipe has it. A model pool's `build` makes a
    live model of them. Raises `CheckpointError` for a directory without task masks, `RecipeError`
    for a task that has none.
    """
    directory = Path(directory)
    if not (directory / MASKS).is_file():
        raise CheckpointError(
            f"{directory} has no {MASKS}: its model is the same for every task",
            hint="Load it as any model.",
        )
    scales: Mapping[str, float] = read_config(directory / SCALES)["scales"]
    pool = _pool_of(directory, plugins or load_plugins())
    tasks = [pool.task_of(expert) for expert in scales]
    if task not in tasks:
        raise RecipeError(
            f"{directory} has no masks for task {task!r}",
            hint=f"It has them for: {', '.join(tasks)}.",
        )
    number, packed = tasks.index(task), CheckpointSource(directory / MASKS)
    scale = list(scales.values())[number]
    assert pool.base is not None  # noqa: S101 - the masks are of differences from it
    return task_weights(CheckpointSource(directory), pool.base, packed, number, scale)


def _pool_of(directory: Path, plugins: PluginManager) -> ModelPool[Any]:
    """Return the models that a directory was made of, aligned as they were."""
    recipe = load_recipe(directory / RECIPE)
    choice = choice_of(recipe.get("model_pool"))
    pool = resolve_component(ModelPoolSpec, choice, plugins, section="model_pool").create()
    policy = validated(AlignmentPolicy, recipe.get("alignment", {}), prefix="alignment")
    aligned: ModelPool[Any] = pool.aligned(policy)
    return aligned
