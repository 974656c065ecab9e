"""`fuse schema`: a JSON schema of recipes, for editors."""

from __future__ import annotations

import typer

from fusion_core.cli.output import print_json
from fusion_core.plugins.manager import load_plugins


def schema(context: typer.Context) -> None:
    """Print a JSON schema of recipes.

    It knows every installed component's options. In an editor: put
    `# yaml-language-server: $schema=FILE` on the first line of a recipe.
    """
    from fusion_core.planning.described import recipe_schema

    print_json(recipe_schema(load_plugins(context.obj)))
