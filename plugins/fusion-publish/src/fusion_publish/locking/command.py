"""`fuse lock RECIPE`: pin the inputs of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def lock(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Lock this recipe.")],
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the recipe; repeatable."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write FILE; default: RECIPE.lock.yaml."
        ),
    ] = None,
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME", help="Allow something that runs code; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lock as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress.")] = False,
) -> None:
    """Write a recipe with the commit of every repository and the SHA-256 of every file it reads.

    fuse run of the locked recipe refuses models and data of tasks that differ, before it merges. It
    records the hashes in provenance.json. Revisions that the cache knows are not looked up again:
    fuse download looks them up.

    \b
    Examples:
      fuse lock recipe.yaml
      fuse run recipe.lock.yaml -o merged
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core import RunOptions
    from fusion_core.commands import (
        escape_control,
        load_plugins,
        load_recipe,
        override,
        print_json,
        progress_for,
        trusted_names,
    )
    from fusion_publish.locking.locked_recipe import lock_recipe, locked_path, write_locked

    blocked: frozenset[str] = context.obj or frozenset()
    path = output or locked_path(recipe)
    options = RunOptions(
        block=blocked,
        overwrite=True,
        progress=progress_for(quiet=quiet),
        trust=trusted_names(trust),
    )
    raw = override(load_recipe(recipe, load_plugins(blocked)), assignments or [])
    locked = lock_recipe(raw, path.absolute().parent, options)
    write_locked(locked, path, recipe)
    if as_json:
        print_json(locked["lock"])
        return
    files = sum(map(len, locked["lock"]["files"].values()))
    commits, tasks = (len(locked["lock"][kind]) for kind in ("commits", "tasks"))
    counts = f"{files} files, {commits} commits of the hub, data of {tasks} tasks"
    typer.echo(escape_control(f"locked: {path}: {counts}"))
