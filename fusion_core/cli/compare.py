"""`fuse compare DIR...`: what was measured of several models, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json
from fusion_core.shown import printable


def compare(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Model directories that fuse run wrote."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what was measured of several models, side by side.

    Beside them stand the base, the experts and, for pools that know some, the figures
    that others published. Averages are over the tasks that all of them were measured on. Nothing is
    measured anew: that is fuse evaluate. What has no report is named and skipped, so
    fuse compare outputs/* does.
    """
    from fusion_core.report.stored import compared_as_json, read_reports

    reports, problems = read_reports(directories)
    for problem in problems:
        print(f"skipped: {printable(problem.message)}", file=sys.stderr)
    if as_json:
        print_json(compared_as_json(reports))
        return
    from fusion_core.report.table import print_reports

    print_reports(reports)
