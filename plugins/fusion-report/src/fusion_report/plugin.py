"""Register the commands `compare`, `diagnose` and `report`; this module imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the commands that compare, report and predict merges."""
    yield CommandSpec(
        name="compare",
        summary="Compare the scores of several models in one table.",
        target="fusion_report.comparison.command:compare",
    )
    yield CommandSpec(
        name="report",
        summary="Write report.html, a page about one or several runs.",
        target="fusion_report.command:report",
    )
    yield CommandSpec(
        name="diagnose",
        summary="Predict which merge methods will work for a pool.",
        target="fusion_report.diagnosis.command:diagnose",
    )
