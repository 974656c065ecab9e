"""`fuse report DIR...`: one page about one or several runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

Output = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "-o", "--output", metavar="FILE", help="Where; default, of one run: DIR/report.html."
    ),
]


def report(
    context: typer.Context,
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Model directories that fuse run wrote."),
    ],
    output: Output = None,
    vectors: Annotated[
        bool,
        typer.Option("--vectors/--no-vectors", help="Read the experts' weights: norms, cosines."),
    ] = True,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Add the 95 % interval of each figure.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Write one page about what was merged and measured: report.html.

    Everything is inside the file, to be sent, printed and read anywhere: no network, no scripts.
    Several runs stand side by side. Nothing is measured: that is fuse evaluate.
    """
    from fusion_core.commands import escape_control, progress_for
    from fusion_core.errors import RecipeError
    from fusion_core.files import write_durably
    from fusion_report.page import page
    from fusion_report.runs import read_runs

    if output is None and len(directories) > 1:
        raise RecipeError(
            f"a page about {len(directories)} runs belongs to none of them",
            hint="Say where it goes: --output report.html",
        )
    runs, problems = read_runs(directories, outcomes=intervals)
    for problem in problems:
        print(f"skipped: {escape_control(problem.message)}", file=sys.stderr)
    blocked: frozenset[str] = context.obj or frozenset()
    progress = progress_for(quiet=quiet)
    text = page(runs, progress=progress, blocked=blocked, with_vectors=vectors, intervals=intervals)
    place = output if output is not None else directories[0] / "report.html"
    write_durably(place, text.encode(), parents=True)
    typer.echo(f"written: {escape_control(str(place))}")
