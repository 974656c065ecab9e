"""What is said of reports whose experts score below the base on their own task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.contracts.below_base import describe_below_base, warn_of_below_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.below_base import BelowBase
    from fusion_core.contracts.report import Report


def below_base_warnings(reports: Mapping[str, Report]) -> list[str]:
    """Say, for stderr, of which models experts and tasks probably do not belong together."""
    texts = {warn_of_below_base(experts): names for experts, names in _by_experts(reports).items()}
    if len(reports) == 1:
        return list(texts)
    return [f"{', '.join(names)}: {warning}" for warning, names in texts.items()]


def below_base_notes(reports: Mapping[str, Report]) -> list[str]:
    """Say the same in a line below a table."""
    texts = {describe_below_base(experts): names for experts, names in _by_experts(reports).items()}
    if len(reports) == 1:
        return list(texts)
    return [f"{note} ({', '.join(names)})" for note, names in texts.items()]


def _by_experts(reports: Mapping[str, Report]) -> dict[tuple[BelowBase, ...], list[str]]:
    """Return the experts that score below the base, with the names of the models they made."""
    names: dict[tuple[BelowBase, ...], list[str]] = {}
    for name, report in reports.items():
        if report.experts_below_base:
            names.setdefault(report.experts_below_base, []).append(name)
    return names
