"""Tables as rich draws them, whatever the width of the terminal."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.contracts.table import Table as Figures

#: Headings that are folded to as many columns can be read; to fewer, only if nothing else fits.
_HEADING, _NARROWEST = 9, 5
#: Names that are longer may be folded.
_WORDS = 24


def report_tables(figures: Figures, width: int) -> Iterator[Table]:
    """Draw a table with one row per task if it fits into a width of so many characters.

    Else it has one row per model, and as many parts below each other as it takes.
    """
    rows, words = figures.by_task(), 2 if figures.is_mixed else 1
    bold = [number for number, entry in enumerate(figures.entries, 1) if not entry.is_task]
    if _width(rows, words, _HEADING) > width:
        rows, words, bold = figures.by_model(), 1, []
    intervals = figures.intervals is not None
    if intervals:  # numbers stand below numbers, whatever follows them
        rows = _aligned(rows, words)
    for part in _parts(rows, words, width):
        yield draw(part, width, bold=bold, words=words, left=intervals)


def draw(
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    bold: Sequence[int] = (),
    words: int = 1,
    left: bool = False,
) -> Table:
    """Draw rows of cells under the first one, whose first columns are words and no numbers.

    Headings are folded where they would make the table too wide; numbers never are.
    """
    is_wide = _width(rows, words, width) > width
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (heading, *cells) in enumerate(zip(*rows, strict=True)):
        is_word = number < words
        room = max(_NARROWEST, *map(len, cells)) if is_wide and not is_word else len(heading)
        table.add_column(
            Text(fill(_clean(heading), max(1, room))),
            justify="left" if is_word or left else "right",
            no_wrap=not is_word,
            overflow="fold",
        )
    for number, row in enumerate(rows[1:], 1):
        table.add_row(*map(text_of, row), style="bold" if number in bold else None)
    return table


def _aligned(rows: Sequence[Sequence[str]], words: int) -> list[list[str]]:
    """Pad cells at their left so that what stands before a blank is as wide in all of a column."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns[words:]:
        widths = [len(cell.partition(" ")[0]) for cell in column[1:]]
        room = max(widths)
        column[1:] = [
            " " * (room - width) + cell for width, cell in zip(widths, column[1:], strict=True)
        ]
    return [list(row) for row in zip(*columns, strict=True)]


def _parts(
    rows: Sequence[Sequence[str]], words: int, width: int
) -> Iterator[list[tuple[str, ...]]]:
    """Part a table between columns so that each part fits; all begin with the columns of words."""
    columns = list(zip(*rows, strict=True))
    named, part = columns[:words], columns[: words + 1]
    for column in columns[words + 1 :]:
        longer = [*part, column]
        if _width(list(zip(*longer, strict=True)), words, _NARROWEST) > width:
            yield list(zip(*part, strict=True))
            longer = [*named, column]
        part = longer
    yield list(zip(*part, strict=True))


def _width(rows: Sequence[Sequence[str]], words: int, longest: int) -> int:
    """Return the columns that a table takes, with headings of so many characters at the most.

    Words may be folded, too.
    """
    widths = [
        max(min(len(heading), longest), *map(len, cells))
        for heading, *cells in zip(*rows, strict=True)
    ]
    widths[:words] = [min(width, _WORDS) for width in widths[:words]]
    return sum(widths) + 2 * (len(widths) - 1)


def text_of(value: str) -> Text:
    """Return a text that a terminal shows as it is, on one line."""
    return Text(_clean(value))


def _clean(value: str) -> str:
    return printable(" ".join(value.splitlines()))
