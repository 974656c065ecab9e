"""Registers the commands `fuse report` and `fuse diagnose`; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command that writes a page, and the one that looks ahead."""
    yield CommandSpec(
        name="report",
        summary="Write report.html: what one or several runs made, in tables and pictures.",
        target="fusion_report.command:report",
    )
    yield CommandSpec(
        name="diagnose",
        summary="Say what to expect of merges before any is made, why, and how sure that is.",
        target="fusion_report.diagnosis.command:diagnose",
    )
