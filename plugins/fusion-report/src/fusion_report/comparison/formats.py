"""Tables as CSV, Markdown and LaTeX, with one row per model and one column per task."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.commands import Entry, ReportTable

_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$"}
)


def as_csv(table: ReportTable) -> str:
    """Return a table as CSV with raw numbers, such as fractions, and the ends of its intervals."""
    columns: list[Sequence[str | float | None]] = [["model", *table.headings]]
    for entry in table.entries:
        columns += _columns(entry, intervals=table.intervals is not None)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue().rstrip("\n")


def as_markdown(table: ReportTable) -> str:
    """Return a table in GitHub-flavoured Markdown, and the metric that all tasks share."""
    heading, *lines = table.by_model()
    ruler = "|".join(["", "---", *["---:"] * (len(heading) - 1), ""])
    below = ["", table.measure] if table.measure else []
    return "\n".join([_markdown_row(heading), ruler, *map(_markdown_row, lines), *below])


def as_latex(table: ReportTable) -> str:
    """Return a table as a LaTeX tabular that needs the package booktabs.

    A comment names the metric that all tasks share, for the caption.
    """
    rows = table.by_model()
    heading, *lines = (" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in rows)
    above = [f"% {table.measure}"] if table.measure else []
    begin = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    body = [r"\toprule", heading, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*above, begin, *body, r"\end{tabular}"])


def _columns(entry: Entry, *, intervals: bool) -> Iterator[Sequence[str | float | None]]:
    """Yield columns, each a name followed by numbers."""
    name = entry.label if not entry.is_task else f"{entry.label} {entry.metric.name}"
    yield [name, *(None if figure is None else figure.value for figure in entry.figures)]
    if intervals:
        ends = [None if figure is None else figure.interval for figure in entry.figures]
        yield [f"{name} low", *(None if interval is None else interval[0] for interval in ends)]
        yield [f"{name} high", *(None if interval is None else interval[1] for interval in ends)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
