"""The files that a run reads from the hub, known before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import ModelPoolSpec, TaskPoolSpec
from fusion_core.planning.resolution import choose_task_pool, resolve_component
from fusion_core.recipe.config import choice_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import hub
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.plugins.manager import PluginManager


def list_downloads(pool: ModelPool[Any], tasks: TaskPool[Any] | None) -> list[hub.FileRequest]:
    """Return all hub files that a run with these pools reads."""
    return [*pool.downloads(), *(() if tasks is None else tasks.downloads())]


def create_pools(
    sections: Mapping[str, Any], plugins: PluginManager
) -> tuple[ModelPool[Any], TaskPool[Any] | None]:
    """Create a recipe's pools; the task pool defaults to the model pool's own.

    Raises `RecipeError` and `HubError` as a run does.
    """
    choice = choice_of(sections["model_pool"])
    models = resolve_component(ModelPoolSpec, choice, plugins, section="model_pool")
    choice = choose_task_pool(choice_of(sections.get("task_pool")), models)
    if choice.name is None:
        return models.create(), None
    tasks = resolve_component(TaskPoolSpec, choice, plugins, section="task_pool")
    pool = models.create()
    return pool, tasks.create().bind(pool)
