"""Registers the commands `compare`, `diagnose` and `report`; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the commands that show runs, and the one that predicts them."""
    yield CommandSpec(
        name="compare",
        summary="Show what was measured of several models, side by side.",
        target="fusion_report.comparison.command:compare",
    )
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
