"""`fuse schema`: a JSON schema of recipes, for editors."""

from __future__ import annotations

import typer

from fusion_core.cli.output import print_json
from fusion_core.plugins.manager import load_plugins


def schema(context: typer.Context) -> None:
    """Print a JSON schema of recipes, for editors.

    The schema includes the options of every installed component. To use it in an editor, save it as
    FILE and begin a recipe with this line:

    \b
      # yaml-language-server: $schema=FILE
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core.planning.option_descriptions import recipe_schema

    print_json(recipe_schema(load_plugins(context.obj)))
