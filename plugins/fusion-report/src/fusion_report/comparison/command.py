"""`fuse compare DIR...`: compare the scores of several models."""

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
    """The format of a printed comparison."""

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
        typer.Option(
            "--format", help="Print in this format; all but table have one row per model."
        ),
    ] = Format.TABLE,
    sort: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(
            metavar="COLUMN", help="Sort by a task, average, normalised or worst; best first."
        ),
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Average runs that differ only in the seed.")
    ] = False,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Show 95 % intervals of scores.")
    ] = False,
    paired: Annotated[
        Optional[tuple[Path, Path]],  # noqa: UP045
        typer.Option(metavar="A B", help="Test whether B is better than A on the same examples."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare the scores of several models in one table.

    The table also shows the base, the experts and published results that the pool knows. Averages
    are over the tasks that all models were measured on. The command measures nothing: see fuse
    evaluate. It names and skips directories without a report, so fuse compare outputs/* works.

    Two models are also compared example by example if their tasks store outcomes per example.

    \b
    Examples:
      fuse compare outputs/* --sort average
      fuse compare outputs/* --seeds --format latex
      fuse compare outputs/* --paired outputs/mini8-ties-1 outputs/mini8-dare-1
    """  # noqa: D301 - \b tells typer to keep the line breaks
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
        raise RecipeError(
            f"--paired does not support --format {form}", hint="Use --format table or json."
        )


def _with_intervals(
    reports: dict[str, Report], *, intervals: bool, seeds: bool
) -> tuple[dict[str, Report], Intervals | None]:
    """Return the reports to show, and how to compute intervals if requested."""
    from fusion_core.commands import Intervals

    if not seeds:
        return reports, Intervals() if intervals else None
    from fusion_report.comparison.seeds import SeedIntervals, average_seeds

    return average_seeds(reports), SeedIntervals()


def _differences(pair: Reports, *, is_asked: bool) -> list[Difference]:
    from fusion_core.errors import RecipeError
    from fusion_report.comparison.differences import compare_reports

    if len(pair) == 1:
        raise RecipeError(
            f"--paired names {next(iter(pair))} twice", hint="Name two different directories."
        )
    differences = compare_reports(*pair.values())
    if is_asked and not differences:
        raise RecipeError(
            f"{' and '.join(pair)} have no outcomes of the same test examples",
            hint="Measure both on the same tasks with fuse evaluate, which stores outcomes.",
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
    """Shorten paths with the same parent to their last names."""
    paths = [Path(name) for name in reports]
    if len({path.parent for path in paths}) > 1 or not all(path.name for path in paths):
        return reports
    return dict(zip((path.name for path in paths), reports.values(), strict=True))
