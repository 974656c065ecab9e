"""Register the command `fuse new-plugin`; this module imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import CommandSpec, hookimpl


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register `fuse new-plugin`."""
    yield CommandSpec(
        name="new-plugin",
        summary="Write the package of a new plugin.",
        target="fusion_testing.command:new_plugin",
        group="Authors of plugins",
    )
