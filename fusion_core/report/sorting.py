"""Which of several models comes first in a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion_core.contracts.below_base import describe_below_base
from fusion_core.contracts.layout import NORMALISED, table_of
from fusion_core.errors import RecipeError
from fusion_core.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.below_base import BelowBase
    from fusion_core.contracts.report import Report
    from fusion_core.contracts.table import Entry, Figure


def sort_reports(reports: Mapping[str, Report], label: str) -> dict[str, Report]:
    """Return reports by a task or an average, the best first; raises `RecipeError` for others."""
    table = table_of(reports)
    entry = next((each for each in table.entries if each.label == label), None)
    if entry is None:
        labels = [each.label for each in table.entries]
        below = describe_below_base(_below_base(reports)) if label == NORMALISED else ""
        reason = f": {below}" if below else ""
        raise RecipeError(
            f"nothing is called {label!r} here{reason}",
            hint=did_you_mean(label, labels) or f"Sort by {', '.join(labels)}.",
        )
    figures = dict(zip(reports, entry.figures[table.first :], strict=False))
    ranked = sorted(reports, key=lambda name: _rank(entry, figures[name]))
    return {name: reports[name] for name in ranked}


def _below_base(reports: Mapping[str, Report]) -> list[BelowBase]:
    """Return the experts that score below the base in any report, each task once."""
    experts = [expert for report in reports.values() for expert in report.experts_below_base]
    return list({expert.task: expert for expert in experts}.values())


def _rank(entry: Entry, figure: Figure | None) -> float:
    """Return a number that is small for what is good; what is not known is last."""
    if figure is None or math.isnan(figure.value):
        return math.inf
    return -figure.value if entry.metric.higher_is_better else figure.value
