"""Registers the command `fuse report`; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command that writes a page."""
    yield CommandSpec(
        name="report",
        summary="Write report.html: what one or several runs made, in tables and pictures.",
        target="fusion_report.command:report",
    )
