"""What pools read from the hub, known ahead of a run: for its size, and to fetch it all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import ModelPoolSpec, TaskPoolSpec
from fusion_core.planning.resolving import resolve_component, task_pool_of
from fusion_core.recipe.config import choice_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import hub
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.plugins.manager import PluginManager


def downloads_of(pool: ModelPool[Any], tasks: TaskPool[Any] | None) -> list[hub.Wanted]:
    """Return everything that a run with these pools reads from the hub."""
    return [*pool.downloads(), *(() if tasks is None else tasks.downloads())]


def pools_of(
    sections: Mapping[str, Any], plugins: PluginManager
) -> tuple[ModelPool[Any], TaskPool[Any] | None]:
    """Make a recipe's pools, as a run does; a pool's own tasks where none are named.

    Raises `RecipeError` and `HubError` as a run would.
    """
    choice = choice_of(sections["model_pool"])
    models = resolve_component(ModelPoolSpec, choice, plugins, section="model_pool")
    choice = task_pool_of(choice_of(sections.get("task_pool")), models)
    if choice.name is None:
        return models.create(), None
    tasks = resolve_component(TaskPoolSpec, choice, plugins, section="task_pool")
    pool = models.create()
    return pool, tasks.create().bind(pool)
