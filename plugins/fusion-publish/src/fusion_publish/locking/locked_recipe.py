"""Write a recipe with the commits and hashes of everything that it merges."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from fusion_core import hub, plan
from fusion_core.commands import digest_inputs, dump_yaml, load_recipe
from fusion_core.errors import OutputError, RecipeError
from fusion_core.files import write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import RunOptions

_COMMENT = """\
# Written by `fuse lock {recipe}`. Run it with: fuse run {name}
# The run fails if an input is not the recorded one. Lock the recipe again to accept a change.
"""


def locked_path(recipe: Path) -> Path:
    """Return the default path of a locked recipe: `recipe.lock.yaml` for `recipe.yaml`."""
    return recipe.with_name(f"{recipe.stem}.lock.yaml")


def lock_recipe(raw: Mapping[str, Any], folder: Path, options: RunOptions) -> dict[str, Any]:
    """Return a resolved recipe for a folder, with a lock of all its models and data.

    Downloads them and reads every file whole. Raises as a run does.
    """
    with hub.session(options.progress):
        planned = plan({name: value for name, value in raw.items() if name != "lock"}, options)
        planned.check_trust()
        _ = planned.aligned  # raises for models that do not fit together
        hub.download_requests(planned.downloads())
        files = digest_inputs(planned)
        planned.check_data()
        tasks = json.loads(json.dumps(planned.data))
        commits = hub.resolved_commits()
    if not any(files.values()):
        raise RecipeError(
            "the recipe's models have no files to lock",
            hint="Save the models, and name their directories in the recipe.",
        )
    recipe = planned.recipe_in(folder)
    output = planned.resolved.recipe.output.path
    if output is not None:
        recipe["output"]["path"] = os.path.relpath(output, folder)
    return {**recipe, "lock": {"commits": commits, "files": files, "tasks": tasks}}


def write_locked(recipe: Mapping[str, Any], path: Path, source: Path) -> None:
    """Write a locked recipe. Raises `OutputError` for an existing file of another kind."""
    if path.exists() and "lock" not in load_recipe(path):
        raise OutputError(
            f"{path} exists and is not a locked recipe", hint="Choose another file with -o."
        )
    comment = _COMMENT.format(recipe=source.name, name=path.name)
    write_durably(path, (comment + dump_yaml(dict(recipe))).encode())
