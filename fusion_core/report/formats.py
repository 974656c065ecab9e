"""Tables for programs and papers: CSV, Markdown, LaTeX; a row a model, a column a task."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.contracts.table import Entry, Table

_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$"}
)


def as_csv(table: Table, *, intervals: bool = False) -> str:
    """Return raw numbers, fractions between 0 and 1; with the ends of intervals if wanted."""
    found = [_columns(each, intervals=intervals) for each in table.entries]
    columns = [["model", *table.headings], *(column for each in found for column in each)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue().rstrip("\n")


def as_markdown(table: Table, *, intervals: bool = False) -> str:
    """Return a table as GitHub reads it."""
    rows = table.by_model(intervals=intervals)
    heading, *lines = (["| " + " | ".join(map(_unpiped, row)) + " |"] for row in rows)
    aligned = ["|".join(["", "---", *["---:"] * (len(rows[0]) - 1), ""])]
    return "\n".join(line for each in (heading, aligned, *lines) for line in each)


def as_latex(table: Table, *, intervals: bool = False) -> str:
    """Return a tabular of the package booktabs."""
    rows = table.by_model(intervals=intervals)
    heading, *lines = (" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in rows)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    ruled = [r"\toprule", heading, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([begin, *ruled, r"\end{tabular}"])


def _columns(entry: Entry, *, intervals: bool) -> Iterator[Sequence[str | float | None]]:
    """Yield a task's columns of numbers, each below its name."""
    name = entry.label if not entry.is_task else f"{entry.label} {entry.metric.name}"
    yield [name, *(None if each is None else each.value for each in entry.figures)]
    if intervals:
        found = [None if each is None else each.interval for each in entry.figures]
        yield [f"{name} low", *(None if each is None else each[0] for each in found)]
        yield [f"{name} high", *(None if each is None else each[1] for each in found)]


def _unpiped(cell: str) -> str:
    return cell.replace("|", r"\|")
