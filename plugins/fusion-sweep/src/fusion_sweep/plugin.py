"""Registers the commands `fuse sweep` and `fuse runs`; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import CommandSpec, hookimpl

_GROUP = "Many runs"


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register `fuse sweep` and `fuse runs`."""
    yield CommandSpec(
        name="sweep",
        summary="Run a recipe with many options, and rank them.",
        target="fusion_sweep.command:sweep",
        group=_GROUP,
    )
    yield CommandSpec(
        name="runs",
        summary="List, show, compare, export and remove runs.",
        target="fusion_sweep.runs.command:app",
        group=_GROUP,
    )
