"""`fuse runs`: a command each for what is done with a store."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, Optional

import typer

from fusion_sweep.command import Store

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show, compare, export and remove what sweeps measured.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A sweep or a run, by its first letters.")
]


@app.command()
def ls(
    sweep: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Argument(metavar="SWEEP", help="List its runs; default: all sweeps."),
    ] = None,
    sort: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="COLUMN", help="Default: the objective, the best first."),
    ] = None,
    where: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="COLUMN=VALUE", help="Only such runs; repeatable."),
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List sweeps, or the runs of one."""
    from fusion_core.commands import print_json, print_table, printable
    from fusion_sweep.runs import listing
    from fusion_sweep.store import Store as Opened

    with Opened(store) as opened:
        rows = listing.sweeps(opened) if sweep is None else listing.runs(opened, sweep)
    rows = listing.ordered(listing.chosen(rows, where or []), sort)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(*listing.table(rows))
    else:
        print(printable(f"there are none in {opened.path}"), file=sys.stderr)


@app.command()
def show(name: Name, store: Store = None, as_json: AsJson = False) -> None:
    """Show a run: what was measured, its recipe, and the command that makes the model."""
    from fusion_core.commands import dump_yaml, print_json, printable
    from fusion_sweep.runs import listing
    from fusion_sweep.store import Store as Opened

    with Opened(store) as opened:
        if opened.is_sweep(name):
            print_json({"sweep": name, **opened.sweep(name).about})
            return
        trial = opened.trial(name)
    if as_json:
        print_json(listing.as_json(trial))
        return
    for line in listing.comments(trial):
        print(f"# {printable(line)}")
    print(dump_yaml(trial.recipe), end="")


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...")], store: Store = None
) -> None:
    """Show what was measured of several runs, side by side."""
    from fusion_core.commands import print_reports
    from fusion_core.errors import RecipeError
    from fusion_sweep.store import Store as Opened

    with Opened(store) as opened:
        trials = [opened.trial(name) for name in names]
    if failed := [trial for trial in trials if trial.report is None]:
        run = failed[0].id[:8]
        raise RecipeError(f"run {run} failed, and measured nothing: {failed[0].error}")
    reports = {f"{t.algorithm} {t.id[:8]}": t.report for t in trials if t.report is not None}
    print_reports(reports)


@app.command()
def export(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="By its first letters.")],
    form: Annotated[Literal["csv", "json"], typer.Option("--format", help="csv or json.")] = "csv",
    store: Store = None,
) -> None:
    """Print every run of a sweep with all that was measured."""
    from fusion_core.commands import print_json
    from fusion_sweep.runs import listing
    from fusion_sweep.store import Store as Opened

    with Opened(store) as opened:
        rows = listing.runs(opened, sweep)
    print_json(rows) if form == "json" else print(listing.as_csv(rows), end="")


@app.command()
def rm(names: Annotated[list[str], typer.Argument(metavar="NAME...")], store: Store = None) -> None:
    """Remove sweeps with the runs that no other sweep has, or single runs."""
    from fusion_sweep.store import Store as Opened

    with Opened(store) as opened:
        count = sum(opened.remove(name) for name in names)
    print(f"removed: {count} run{'s' * (count != 1)}")
