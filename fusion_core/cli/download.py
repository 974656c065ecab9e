"""`fuse download`: download everything that a pool reads from the hub before a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from fusion_core.cli.flags import (
    AsJson,
    Assignments,
    Pool,
    Quiet,
    RecipeFile,
    TaskPoolName,
    Tasks,
    sections_from,
)
from fusion_core.cli.output import print_json, warn_of_broken_plugins
from fusion_core.cli.progress import progress_for
from fusion_core.errors import RecipeError
from fusion_core.formatting import escape_control
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.hub import FileRequest
    from fusion_core.plugins.manager import PluginManager


def download(
    context: typer.Context,
    recipe: RecipeFile = None,
    pool: Pool = None,
    task_pool: TaskPoolName = None,
    tasks: Tasks = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Download the models and tasks of a recipe or a pool.

    The command first shows the size of the download, with the space for decoded examples, and the
    free disk space. A second call skips complete files and restarts an interrupted one. Afterwards
    fuse run needs no network. It reads the same commits until fuse download resolves the branches
    again. For a locked recipe, the command downloads the locked commits.
    """
    plugins = load_plugins(context.obj)
    warn_of_broken_plugins(plugins)
    from fusion_core import hub
    from fusion_core.plugins.recipe_files import load_recipe
    from fusion_core.recipe.assignments import override
    from fusion_core.recipe.config import Lock
    from fusion_core.recipe.text import check_not_foreign
    from fusion_core.recipe.validation import validate

    names = {"model_pool": pool, "task_pool": task_pool}
    raw = {} if recipe is None else load_recipe(recipe, plugins)
    check_not_foreign(raw)
    sections = override(sections_from(raw, names, tasks), assignments or [])
    if "model_pool" not in sections:
        raise RecipeError(
            "model_pool: required", hint="Choose a pool with --pool NAME; see: fuse list pools"
        )
    with hub.session(progress_for(quiet=quiet), again=True):
        hub.pin(validate(Lock, sections.get("lock") or {}, prefix="lock").commits)
        wanted = _list_files(sections, plugins)
        size = hub.measure_download(wanted)
        outlook = hub.check_space(size)
        if not quiet:
            print(escape_control(outlook), file=sys.stderr)
        hub.download_requests(wanted)
    if as_json:
        print_json({"downloaded_bytes": size.missing})
    else:
        print("complete: fuse run needs no network now")


def _list_files(recipe: Mapping[str, Any], plugins: PluginManager) -> list[FileRequest]:
    """Return the hub files of a recipe's pools; the task pool defaults to the model pool's own."""
    from fusion_core.contracts.specs import ModelPoolSpec, TaskPoolSpec
    from fusion_core.planning.resolution import ANY_MODELS, choose_task_pool, resolve_component
    from fusion_core.recipe.config import choice_of

    choice = choice_of(recipe["model_pool"]).with_default_name(ANY_MODELS)
    models = resolve_component(ModelPoolSpec, choice, plugins, section="model_pool")
    choice = choose_task_pool(choice_of(recipe.get("task_pool")), models)
    if choice.name is None:
        return [*models.create().downloads()]
    tasks = resolve_component(TaskPoolSpec, choice, plugins, section="task_pool")
    pool = models.create()
    return [*pool.downloads(), *tasks.create().bind(pool).downloads()]
