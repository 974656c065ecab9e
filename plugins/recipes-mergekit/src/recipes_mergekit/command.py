"""The command `fuse import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def import_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Import this configuration of mergekit.")
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option("-o", "--output", metavar="RECIPE", help="Write the recipe to RECIPE."),
    ] = None,
) -> None:
    """Print the recipe of a configuration of mergekit, with comments.

    The recipe gives the values that mergekit gives, or the command lists what has no counterpart.
    fuse run FILE runs the configuration directly.

    \b
    Examples:
      fuse import mergekit.yml
      fuse import mergekit.yml -o recipe.yaml
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core.errors import OutputError, RecipeError
    from recipes_mergekit.importing import import_text
    from recipes_mergekit.rendering import move_paths, render

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file} cannot be read: {error}") from error
    imported = import_text(text, str(file))
    if imported is None:
        raise RecipeError(
            f"expected a configuration of mergekit with merge_method: {file}",
            hint="fuse run runs recipes as they are.",
        )
    if output is None:
        print(render(imported, file.name), end="")
        return
    if output.exists():
        raise OutputError(f"{output} exists", hint="Name another file, or remove it.")
    recipe = move_paths(imported.recipe, output.parent)
    output.write_text(render(imported, file.name, recipe), encoding="utf-8")
