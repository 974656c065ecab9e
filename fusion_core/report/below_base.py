"""Warnings and notes about reports with experts that score below the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.below_base import describe_below_base, warn_of_below_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.below_base import BelowBase
    from fusion_core.contracts.report import Report


def below_base_warnings(reports: Mapping[str, Report]) -> list[str]:
    """Return warnings, with scores and remedy, about experts that score below the base."""
    models = _models_by_experts(reports)
    if len(reports) == 1:
        return [warn_of_below_base(experts) for experts in models]
    return [f"{', '.join(m)}: {warn_of_below_base(experts)}" for experts, m in models.items()]


def below_base_notes(reports: Mapping[str, Report]) -> list[str]:
    """Return one-line notes, to print below a table, about experts that score below the base."""
    models = _models_by_experts(reports)
    if len(reports) == 1:
        return [describe_below_base(experts) for experts in models]
    return [f"{describe_below_base(experts)} ({', '.join(m)})" for experts, m in models.items()]


def _models_by_experts(reports: Mapping[str, Report]) -> dict[tuple[BelowBase, ...], list[str]]:
    """Return the names of models by the experts below the base that they share."""
    names: dict[tuple[BelowBase, ...], list[str]] = {}
    for name, report in reports.items():
        if report.experts_below_base:
            names.setdefault(report.experts_below_base, []).append(name)
    return names
