"""Warnings and notes about reports whose experts score below the base on their own task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.below_base import describe_below_base, warn_of_below_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.below_base import BelowBase
    from fusion_core.contracts.report import Report


def below_base_warnings(reports: Mapping[str, Report]) -> list[str]:
    """Return warnings for stderr about experts and tasks that probably do not belong together."""
    groups = _models_by_experts(reports)
    if len(reports) == 1:
        return [warn_of_below_base(experts) for experts in groups]
    return [f"{', '.join(m)}: {warn_of_below_base(experts)}" for experts, m in groups.items()]


def below_base_notes(reports: Mapping[str, Report]) -> list[str]:
    """Return lines to print below a table that say the same."""
    groups = _models_by_experts(reports)
    if len(reports) == 1:
        return [describe_below_base(experts) for experts in groups]
    return [f"{describe_below_base(experts)} ({', '.join(m)})" for experts, m in groups.items()]


def _models_by_experts(reports: Mapping[str, Report]) -> dict[tuple[BelowBase, ...], list[str]]:
    """Return the experts that score below the base, with the names of the models they made."""
    names: dict[tuple[BelowBase, ...], list[str]] = {}
    for name, report in reports.items():
        if report.experts_below_base:
            names.setdefault(report.experts_below_base, []).append(name)
    return names
