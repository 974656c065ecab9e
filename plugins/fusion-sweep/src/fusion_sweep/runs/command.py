"""The subcommands of `fuse runs`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, Optional

import typer

from fusion_sweep.command import Store

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show, compare, export and remove runs.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Select a sweep or a run by the first letters of its name."
    ),
]


@app.command()
def ls(
    sweep: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations at run time
        typer.Argument(metavar="SWEEP", help="List the runs of SWEEP; default: all sweeps."),
    ] = None,
    sort: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="COLUMN",
            help="Sort by COLUMN, the best or largest first; default: by the objective.",
        ),
    ] = None,
    where: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="COLUMN=VALUE", help="List only rows with this value; repeatable."),
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List sweeps, or the runs of one sweep."""
    from fusion_core.commands import escape_control, print_json, print_table
    from fusion_sweep.runs import listing
    from fusion_sweep.store import Store as SweepStore

    with SweepStore(store, create=False) as opened:
        result = None if sweep is None else listing.load_result(opened, sweep)
        rows = listing.sweep_rows(opened) if result is None else result.rows()
    lower_is_better = () if result is None or sort is None else result.lower_is_better
    # sorted first: both know the columns of all rows
    rows = listing.filter_rows(listing.sort_rows(rows, sort, lower_is_better), where or [])
    if as_json:
        print_json(rows)
    elif rows:
        print_table(*listing.format_table(rows))
    else:
        conditions = "".join(f" with {condition}" for condition in where or ())
        kind = "runs" if sweep else "sweeps"
        print(escape_control(f"no {kind}{conditions} in {opened.path}"), file=sys.stderr)


@app.command()
def show(name: Name, store: Store = None, as_json: AsJson = False) -> None:
    """Show a run: its results, its recipe, and the command that writes the model."""
    from fusion_core.commands import dump_yaml, escape_control, print_json
    from fusion_sweep.runs import listing
    from fusion_sweep.store import Store as SweepStore

    with SweepStore(store, create=False) as opened:
        if opened.is_sweep(name):
            print_json({"sweep": name, **opened.sweep(name).about})
            return
        trial = opened.trial(name)
    if as_json:
        print_json(listing.trial_as_json(trial))
        return
    for line in listing.describe_trial(trial, store):
        print(f"# {escape_control(line)}")
    print(dump_yaml(trial.recipe), end="")


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...")], store: Store = None
) -> None:
    """Compare the results of several runs in one table."""
    from fusion_core.commands import print_reports
    from fusion_core.errors import RecipeError
    from fusion_sweep.store import Store as SweepStore

    with SweepStore(store, create=False) as opened:
        trials = [opened.trial(name) for name in names]
    reports = {}
    for trial in trials:
        if trial.report is None:
            raise RecipeError(f"run {trial.id[:8]} failed and has no results: {trial.error}")
        reports[f"{trial.algorithm} {trial.id[:8]}"] = trial.report
    print_reports(reports)


@app.command()
def export(
    sweep: Annotated[
        str,
        typer.Argument(metavar="SWEEP", help="Select a sweep by the first letters of its name."),
    ],
    form: Annotated[
        Literal["csv", "json"], typer.Option("--format", help="Print csv or json.")
    ] = "csv",
    store: Store = None,
) -> None:
    """Print all runs of a sweep with all their results."""
    from fusion_core.commands import print_json
    from fusion_sweep.runs import listing
    from fusion_sweep.store import Store as SweepStore

    with SweepStore(store, create=False) as opened:
        rows = listing.load_result(opened, sweep).rows()
    print_json(rows) if form == "json" else print(listing.format_csv(rows), end="")


@app.command()
def rm(names: Annotated[list[str], typer.Argument(metavar="NAME...")], store: Store = None) -> None:
    """Remove single runs, or sweeps with the runs that no other sweep has."""
    from fusion_sweep.store import Store as SweepStore

    with SweepStore(store, create=False) as opened:
        count = opened.remove(*names)
    print(f"removed: {count} run{'s' * (count != 1)}")
