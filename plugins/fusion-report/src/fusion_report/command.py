"""`fuse report DIR...`: write a page about one or several runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

Output = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write to FILE; default for one run: DIR/report.html.",
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
        typer.Option(
            "--vectors/--no-vectors", help="Read the experts' weights; show norms and cosines."
        ),
    ] = True,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Add 95 % intervals of scores.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Write report.html, a page about one or several runs.

    The page is one file without scripts that needs no network. It shows several runs side by side.
    The command measures nothing: see fuse evaluate.
    """
    from fusion_core.commands import escape_control, progress_for
    from fusion_core.errors import RecipeError
    from fusion_core.files import write_durably
    from fusion_report.page import render_page
    from fusion_report.runs import read_runs

    if output is None and len(directories) > 1:
        raise RecipeError(
            f"--output is required for a page about {len(directories)} runs",
            hint="Name the file to write, e.g. --output report.html",
        )
    runs, problems = read_runs(directories, outcomes=intervals)
    for problem in problems:
        print(f"skipped: {escape_control(problem.message)}", file=sys.stderr)
    blocked: frozenset[str] = context.obj or frozenset()
    progress = progress_for(quiet=quiet)
    text = render_page(
        runs, progress=progress, blocked=blocked, with_vectors=vectors, intervals=intervals
    )
    path = output if output is not None else directories[0] / "report.html"
    write_durably(path, text.encode(), parents=True)
    typer.echo(f"written: {escape_control(str(path))}")
