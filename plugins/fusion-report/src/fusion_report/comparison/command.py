"""`fuse compare DIR...`: what was measured of several models, side by side."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import Report
    from fusion_core.commands import Intervals
    from fusion_report.comparison.differences import Difference

    Reports = Mapping[str, Report]


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
        Format,
        typer.Option("--format", help="Print in this format: all but table have a row per model."),
    ] = Format.TABLE,
    sort: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(
            metavar="COLUMN", help="Sort by a task, average, normalised or worst: best first."
        ),
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Average runs that differ in the seed alone.")
    ] = False,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Show 95 % intervals of figures.")
    ] = False,
    paired: Annotated[
        Optional[tuple[Path, Path]],  # noqa: UP045
        typer.Option(metavar="A B", help="Test whether B is better than A on the same examples."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what was measured of several models, side by side.

    The table has the base, the experts and, for pools that know some, published figures too.
    Averages are over the tasks that all models were measured on. The command measures nothing: see
    fuse evaluate. It names and skips a directory without a report, so fuse compare outputs/* works.

    Two models are also compared example by example, where the tasks keep each example's outcome.

    \b
    Examples:
      fuse compare outputs/* --sort average
      fuse compare outputs/* --seeds --format latex
      fuse compare outputs/* --paired outputs/mini8-ties-1 outputs/mini8-dare-1
    """  # noqa: D301 - \b is typer's: lines stay as they are
    from fusion_core.commands import below_base_warnings, escape_control
    from fusion_core.errors import RecipeError
    from fusion_report.comparison.sorting import sort_reports
    from fusion_report.reading import read_report, read_reports

    are_two = len(directories) == 2 and not seeds  # noqa: PLR2004 - a pair
    reports, problems = read_reports(directories, outcomes=intervals or are_two)
    for problem in problems:
        print(f"skipped: {escape_control(problem.message)}", file=sys.stderr)
    pair = {str(path): read_report(path, outcomes=True) for path in paired or ()}
    if not pair and are_two and len(reports) == len(directories):
        pair = reports
    differences = _differences(pair, is_asked=paired is not None) if pair else []
    reports, over = _with_intervals(reports, intervals=intervals, seeds=seeds)
    if sort is not None:
        reports = sort_reports(reports, sort)
    for warning in below_base_warnings(_shorten(reports)):
        print(f"warning: {escape_control(' '.join(warning.splitlines()))}", file=sys.stderr)
    if as_json or form is Format.JSON:
        _print_json(reports, over, pair, differences)
    elif form is Format.TABLE:
        _print_tables(reports, over, pair, differences)
    elif paired is None:
        _print_text(reports, over, form)
    else:
        raise RecipeError(f"--paired has no --format {form}", hint="Use table or json.")


def _with_intervals(
    reports: dict[str, Report], *, intervals: bool, seeds: bool
) -> tuple[dict[str, Report], Intervals | None]:
    """Return the reports to show, and the intervals of their figures if any are asked for."""
    from fusion_core.commands import Intervals

    if not seeds:
        return reports, Intervals() if intervals else None
    from fusion_report.comparison.seeds import SeedIntervals, average_seeds

    return average_seeds(reports), SeedIntervals()


def _differences(pair: Reports, *, is_asked: bool) -> list[Difference]:
    from fusion_core.errors import RecipeError
    from fusion_report.comparison.differences import compare_reports

    if len(pair) == 1:
        raise RecipeError(f"--paired names {next(iter(pair))} twice", hint="Name two directories.")
    differences = compare_reports(*pair.values())
    if is_asked and not differences:
        raise RecipeError(
            f"{' and '.join(pair)} have no test examples in common that are known one by one",
            hint="Measure both on the same tasks with fuse evaluate, which keeps each outcome.",
        )
    return differences


def _print_json(
    reports: Reports, over: Intervals | None, pair: Reports, differences: Sequence[Difference]
) -> None:
    from fusion_core.commands import print_json
    from fusion_report.comparison.data import differences_as_json, reports_as_json

    data = reports_as_json(reports, over)
    if differences:
        first, second = pair
        data.setdefault(second, {})["paired"] = differences_as_json(first, differences)
    print_json(data)


def _print_tables(
    reports: Reports, over: Intervals | None, pair: Reports, differences: Sequence[Difference]
) -> None:
    from fusion_core.commands import print_reports

    print_reports(_shorten(reports), intervals=over)
    if differences:
        from fusion_report.comparison.drawing import print_differences

        first, second = _shorten(pair)
        print_differences(first, second, differences)


def _print_text(reports: Reports, over: Intervals | None, form: Format) -> None:
    from fusion_core.commands import build_table, escape_control
    from fusion_report.comparison import formats

    write = {
        Format.CSV: formats.as_csv,
        Format.LATEX: formats.as_latex,
        Format.MARKDOWN: formats.as_markdown,
    }
    print(escape_control(write[form](build_table(_shorten(reports), over))))


def _shorten(reports: Reports) -> Reports:
    """Name directories of one parent by their last names."""
    paths = [Path(name) for name in reports]
    if len({path.parent for path in paths}) > 1 or not all(path.name for path in paths):
        return reports
    return dict(zip((path.name for path in paths), reports.values(), strict=True))
