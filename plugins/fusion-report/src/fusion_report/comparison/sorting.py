"""Sort models by a column of their table."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING

from fusion_core.commands import build_table
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import Report
    from fusion_core.commands import Entry, Figure


def sort_reports(reports: Mapping[str, Report], label: str) -> dict[str, Report]:
    """Sort reports by a task or an average, best first; raise `RecipeError` for other columns."""
    table = build_table(reports)
    entry = next((entry for entry in table.entries if entry.label == label), None)
    if entry is None:
        raise _unknown_column(reports, label, [entry.label for entry in table.entries])
    figures = dict(zip(reports, entry.figures[table.first :], strict=False))
    ranked = sorted(reports, key=lambda name: _rank(entry, figures[name]))
    return {name: reports[name] for name in ranked}


def _unknown_column(
    reports: Mapping[str, Report], label: str, labels: Sequence[str]
) -> RecipeError:
    below = [expert.task for report in reports.values() for expert in report.experts_below_base]
    reason = ""
    if label == "normalised" and below:
        reason = ": experts and tasks probably do not belong together, because the expert scores "
        reason += f"below the base on {', '.join(dict.fromkeys(below))}"
    close = " or ".join(get_close_matches(label, labels))
    hint = f"did you mean {close}?" if close else f"Columns: {', '.join(labels)}"
    return RecipeError(f"unknown column {label!r}{reason}", hint=hint)


def _rank(entry: Entry, figure: Figure | None) -> float:
    """Return a key that sorts the best first and missing scores last."""
    if figure is None or math.isnan(figure.value):
        return math.inf
    return -figure.value if entry.metric.higher_is_better else figure.value
