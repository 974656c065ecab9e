"""`fuse compare DIR...`: what was measured of several models, side by side."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fusion_core.cli.flags import Intervals
from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, warn_of_experts
from fusion_core.errors import RecipeError
from fusion_core.shown import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.contracts.report import Report
    from fusion_core.report.paired import Difference


class Format(StrEnum):
    """How a comparison is printed."""

    TABLE = "table"
    CSV = "csv"
    LATEX = "latex"
    MARKDOWN = "markdown"
    JSON = "json"


def compare(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Model directories that fuse run wrote."),
    ],
    form: Annotated[
        Format, typer.Option("--format", help="How to print it; all but table a row a model.")
    ] = Format.TABLE,
    sort: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(metavar="COLUMN", help="A task, average, normalised or worst: best first."),
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Means over runs that differ in the seed alone.")
    ] = False,
    intervals: Intervals = False,
    paired: Annotated[
        Optional[tuple[Path, Path]],  # noqa: UP045
        typer.Option(metavar="A B", help="Is B better than A, on the same examples?"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was measured of several models, side by side.

    Beside them stand the base, the experts and, for pools that know some, the figures
    that others published. Averages are over the tasks that all of them were measured on. Nothing is
    measured anew: that is fuse evaluate. What has no report is named and skipped, so
    fuse compare outputs/* does.

    Of two models, each example's outcome is compared, where the tasks keep them.

    \b
    Examples:
      fuse compare outputs/* --sort average
      fuse compare outputs/* --seeds --format latex
      fuse compare outputs/* --paired outputs/mini8-ties-1 outputs/mini8-dare-1
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core.report.seeds import over_seeds
    from fusion_core.report.sorting import sort_reports
    from fusion_core.report.stored import read_report, read_reports

    are_two = len(directories) == 2 and not seeds  # noqa: PLR2004 - a pair
    reports, problems = read_reports(directories, outcomes=intervals or are_two)
    for problem in problems:
        print(f"skipped: {printable(problem.message)}", file=sys.stderr)
    pair = {str(each): read_report(each, outcomes=True) for each in paired or ()}
    shown = over_seeds(reports) if seeds else reports
    if not pair and are_two and len(reports) == len(directories):
        pair = reports
    found = _differences(pair, is_asked=paired is not None) if pair else []
    if sort is not None:
        shown = sort_reports(shown, sort)
    intervals = intervals or seeds
    warn_of_experts(_short(shown))
    if as_json or form is Format.JSON:
        _print_data(shown, pair, found, intervals=intervals)
    elif form is Format.TABLE:
        _print_tables(shown, pair, found, intervals=intervals)
    elif paired is None:
        _print_text(shown, form, intervals=intervals)
    else:
        raise RecipeError(f"--paired has no --format {form}", hint="Use table or json.")


def _differences(pair: Mapping[str, Report], *, is_asked: bool) -> list[Difference]:
    from fusion_core.report.paired import differences

    if len(pair) == 1:
        raise RecipeError(f"--paired names {next(iter(pair))} twice", hint="Name two directories.")
    found = differences(*pair.values())
    if is_asked and not found:
        raise RecipeError(
            f"{' and '.join(pair)} have no test examples in common that are known one by one",
            hint="Measure both on the same tasks with fuse evaluate, which keeps each outcome.",
        )
    return found


def _print_data(
    reports: Mapping[str, Report],
    pair: Mapping[str, Report],
    found: Sequence[Difference],
    *,
    intervals: bool,
) -> None:
    from fusion_core.report.data import compared_as_json, differences_as_json

    data = compared_as_json(reports, intervals=intervals)
    if found:
        first, second = pair
        data.setdefault(second, {})["paired"] = differences_as_json(first, found)
    print_json(data)


def _print_tables(
    reports: Mapping[str, Report],
    pair: Mapping[str, Report],
    found: Sequence[Difference],
    *,
    intervals: bool,
) -> None:
    from fusion_core.report.table import print_differences, print_reports

    print_reports(_short(reports), intervals=intervals)
    if found:
        first, second = _short(pair)
        print_differences(first, second, found)


def _print_text(reports: Mapping[str, Report], form: Format, *, intervals: bool) -> None:
    from fusion_core.contracts.layout import table_of
    from fusion_core.report import formats

    write = {
        Format.CSV: formats.as_csv,
        Format.LATEX: formats.as_latex,
        Format.MARKDOWN: formats.as_markdown,
    }
    print(printable(write[form](table_of(_short(reports)), intervals=intervals)))


def _short(reports: Mapping[str, Report]) -> Mapping[str, Report]:
    """Name directories that lie in one by their last names."""
    paths = [Path(name) for name in reports]
    if len({path.parent for path in paths}) > 1 or not all(path.name for path in paths):
        return reports
    return dict(zip((path.name for path in paths), reports.values(), strict=True))
