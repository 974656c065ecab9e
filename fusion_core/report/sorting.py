"""Which of several models comes first in a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion_core.contracts.layout import table_of
from fusion_core.errors import RecipeError
from fusion_core.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.report import Report
    from fusion_core.contracts.table import Entry, Figure


def sort_reports(reports: Mapping[str, Report], label: str) -> dict[str, Report]:
    """Return reports by a task or an average, the best first; raises `RecipeError` for others."""
    table = table_of(reports)
    entry = next((each for each in table.entries if each.label == label), None)
    if entry is None:
        labels = [each.label for each in table.entries]
        raise RecipeError(
            f"nothing is called {label!r} here",
            hint=did_you_mean(label, labels) or f"Sort by {', '.join(labels)}.",
        )
    figures = dict(zip(reports, entry.figures[table.first :], strict=False))
    ranked = sorted(reports, key=lambda name: _rank(entry, figures[name]))
    return {name: reports[name] for name in ranked}


def _rank(entry: Entry, figure: Figure | None) -> float:
    """Return a number that is small for what is good; what is not known is last."""
    if figure is None or math.isnan(figure.value):
        return math.inf
    return -figure.value if entry.metric.higher_is_better else figure.value
