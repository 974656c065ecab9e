"""`fuse import`: print the recipe that another tool's configuration stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fusion_core.commands import import_file, load_plugins
from fusion_core.errors import OutputError, RecipeError
from recipes_import.commented_recipe import move_paths, render


def import_recipe(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Import this configuration of another tool.")
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option("-o", "--output", metavar="RECIPE", help="Write the recipe to RECIPE."),
    ] = None,
    config_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Find files that FILE names in DIR; default: next to FILE."
        ),
    ] = None,
) -> None:
    """Print the recipe of another tool's configuration.

    Plugins read the configurations: recipes-mergekit those of mergekit, recipes-fusionbench those
    of FusionBench. The recipe gives the values that the tool gives, or the command lists what has
    no counterpart. fuse run FILE runs the configuration directly.

    \b
    Examples:
      fuse import mergekit.yml
      fuse import mergekit.yml -o recipe.yaml
    """  # noqa: D301 - \b is typer's: lines stay as they are
    if config_dir is not None and not config_dir.is_dir():
        raise RecipeError(f"expected a directory: {config_dir}", hint="Name it by --config-dir.")
    imported = import_file(file, load_plugins(context.obj), config_dir)
    if imported is None:
        raise RecipeError(
            f"expected a configuration of another tool whose plugin is installed: {file}",
            hint="fuse run runs recipes as they are. For mergekit: pip install recipes-mergekit; "
            "for FusionBench: pip install recipes-fusionbench",
        )
    if output is None:
        print(render(imported, imported.recipe, file.name), end="")
        return
    if output.exists():
        raise OutputError(f"{output} exists", hint="Name another file, or remove it.")
    recipe = move_paths(imported.recipe, output.parent)
    output.write_text(render(imported, recipe, file.name), encoding="utf-8")
