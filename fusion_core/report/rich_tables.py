"""Tables drawn by rich to fit any width of the terminal."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fusion_core.formatting import escape_control

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.contracts.table import ReportTable

    Rows = Sequence[Sequence[str]]

#: The width that headings may be folded to, and the width for tables that do not fit otherwise.
_HEADING, _NARROWEST = 9, 5
#: Longer words in the first columns may be folded.
_WORDS = 24


def report_tables(report_table: ReportTable, width: int) -> Iterator[Table]:
    """Draw a table with one row per task if that fits into `width` characters.

    Otherwise draw one row per model, in as many tables below each other as the width requires.
    """
    rows, words = report_table.by_task(), 2 if report_table.is_mixed else 1
    bold = [number for number, entry in enumerate(report_table.entries, 1) if not entry.is_task]
    if _width(rows, words, _HEADING) > width:
        rows, words, bold = report_table.by_model(), 1, []
    has_intervals = report_table.intervals is not None
    if has_intervals:
        rows = _align_numbers(rows, words)
    for part in _split_columns(rows, words, width):
        yield draw_table(part, width, bold=bold, words=words, left=has_intervals)


def draw_table(
    rows: Rows, width: int, *, bold: Sequence[int] = (), words: int = 1, left: bool = False
) -> Table:
    """Draw rows of cells below the headings in the first row.

    The first `words` columns hold words, all others numbers, which are aligned to the right unless
    `left`. Headings and words are folded if the table would be too wide, numbers never.
    """
    is_wide = _width(rows, words, width) > width
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (heading, *cells) in enumerate(zip(*rows, strict=True)):
        is_word = number < words
        space = max(_NARROWEST, *map(len, cells)) if is_wide and not is_word else len(heading)
        table.add_column(
            Text(fill(_clean(heading), max(1, space))),
            justify="left" if is_word or left else "right",
            no_wrap=not is_word,
            overflow="fold",
        )
    for number, row in enumerate(rows[1:], 1):
        table.add_row(*map(text_of, row), style="bold" if number in bold else None)
    return table


def _align_numbers(rows: Rows, words: int) -> list[list[str]]:
    """Pad cells on the left so that numbers stand below numbers, whatever intervals follow them."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns[words:]:
        widths = [len(cell.partition(" ")[0]) for cell in column[1:]]
        widest = max(widths)
        column[1:] = [
            " " * (widest - width) + cell for width, cell in zip(widths, column[1:], strict=True)
        ]
    return [list(row) for row in zip(*columns, strict=True)]


def _split_columns(rows: Rows, words: int, width: int) -> Iterator[list[tuple[str, ...]]]:
    """Split a table between columns so that each part fits; all repeat the columns of words."""
    columns = list(zip(*rows, strict=True))
    part = columns[: words + 1]
    for column in columns[words + 1 :]:
        longer = [*part, column]
        if _width(list(zip(*longer, strict=True)), words, _NARROWEST) > width:
            yield list(zip(*part, strict=True))
            longer = [*columns[:words], column]
        part = longer
    yield list(zip(*part, strict=True))


def _width(rows: Rows, words: int, longest: int) -> int:
    """Return the width of a table whose headings are folded to `longest`, and words to `_WORDS`."""
    widths = [
        max(min(len(heading), longest), *map(len, cells))
        for heading, *cells in zip(*rows, strict=True)
    ]
    widths[:words] = [min(width, _WORDS) for width in widths[:words]]
    return sum(widths) + 2 * (len(widths) - 1)


def text_of(value: str) -> Text:
    """Return text that a terminal prints literally, on one line."""
    return Text(_clean(value))


def _clean(value: str) -> str:
    return escape_control(" ".join(value.splitlines()))
