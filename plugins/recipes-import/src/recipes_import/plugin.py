"""Registers `fuse import`. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import CommandSpec, hookimpl


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command."""
    yield CommandSpec(
        name="import",
        summary="Print the recipe of another tool's configuration.",
        target="recipes_import.command:import_recipe",
    )
