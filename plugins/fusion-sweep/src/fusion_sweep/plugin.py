"""Registers the commands of sweeps; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import CommandSpec, hookimpl

_GROUP = "Many runs"


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register `fuse sweep` and `fuse runs`."""
    yield CommandSpec(
        name="sweep",
        summary="Try algorithms and options, and say which are best.",
        target="fusion_sweep.command:sweep",
        group=_GROUP,
    )
    yield CommandSpec(
        name="runs",
        summary="List, show, compare, export and remove what sweeps measured.",
        target="fusion_sweep.runs.command:app",
        group=_GROUP,
    )
