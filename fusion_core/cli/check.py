"""`fuse check`: what a run would do, and whether it can, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusion_core.cli.flags import (
    Algo,
    Assignments,
    Device,
    ExecutorName,
    NoEval,
    Output,
    Overwrite,
    Pool,
    Quiet,
    RecipeFile,
    Seed,
    TaskPoolName,
    Tasks,
    Trust,
    Verbose,
    Workers,
    counted,
    planned,
    set_up_logging,
)
from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, print_table
from fusion_core.cli.progress import progress_for
from fusion_core.shown import amount

if TYPE_CHECKING:
    from fusion_core.checking.check import Check, Model
    from fusion_core.checking.memory import Memory
    from fusion_core.planning.planned import Plan
    from fusion_core.weights.merging.finite import BadTensor


def check(
    context: typer.Context,
    recipe: RecipeFile = None,
    algo: Algo = None,
    pool: Pool = None,
    task_pool: TaskPoolName = None,
    tasks: Tasks = None,
    assignments: Assignments = None,
    output: Output = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    no_eval: NoEval = False,
    device: Device = "cpu",
    executor: ExecutorName = None,
    workers: Workers = None,
    trust: Trust = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="Read all weights too, and look for NaN and infinity.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a run would do, and whether it can: nothing is written.

    Looks at recipe, plugins, keys, shapes, dtypes, licences, disk and memory, from headers alone.
    Exits as the run would: 4 if the models do not fit together, 6 if the output has no room, 2 if
    the recipe needs trust that --trust does not give. What needs trust is shown, and not started.
    """
    set_up_logging(verbose=verbose)
    plan = planned(
        context,
        recipe,
        {
            "algorithm": algo,
            "model_pool": pool,
            "task_pool": task_pool,
            "executor": executor,
            "tasks": tasks,
        },
        assignments,
        seed=seed,
        output=output,
        trust=trust,
        evaluate=not no_eval,
        overwrite=overwrite,
        device=device,
        workers=workers,
        progress=progress_for(quiet=quiet),
    )
    show_check(plan, scan=scan, as_json=as_json)


def show_check(plan: Plan, *, scan: bool = False, as_json: bool) -> None:
    """Print what a plan would do; raises what the run would, as far as it can be told."""
    from fusion_core.checking import check as core

    checked = core.check(plan)
    bad = core.scan(plan) if scan else None
    if as_json:
        print_json({**checked.as_json(), "scan": None if bad is None else _bad_as_json(bad)})
    else:
        _print(checked, bad)
    if bad is not None:
        core.raise_if_bad(bad, plan)
    plan.check_trust()
    checked.raise_unless_it_fits()


def _print(checked: Check, bad: list[BadTensor] | None) -> None:
    columns = [[heading, *map(cell, checked.models)] for heading, cell in _COLUMNS.items()]
    headings, *rows = zip(*(column for column in columns if any(column[1:])), strict=True)
    print_table(headings, rows)
    print()
    print_table(["the run", ""], [*_rows(checked)])
    if bad:
        print()
        counts = [[each.model, each.tensor, str(each.nan), str(each.infinite)] for each in bad]
        print_table(["model", "tensor", "NaN", "infinite"], counts)
    elif bad is not None:
        print("\nscan: all weights are finite")


def _differs(model: Model) -> str:
    found = {"missing": model.missing, "extra": model.extra}
    return ", ".join(f"{count} {kind}" for kind, count in found.items() if count)


#: The columns of the table of models; one that is empty throughout is left out.
_COLUMNS: dict[str, Callable[[Model], str]] = {
    "model": lambda each: each.name,
    "source": lambda each: each.source,
    "tensors": lambda each: str(each.tensors),
    "size": lambda each: amount(each.bytes),
    "dtype": lambda each: ", ".join(each.dtypes),
    "licence": lambda each: each.licence or "",
    "differs": _differs,
}


def _rows(checked: Check) -> list[list[str]]:
    disk = checked.disk
    free = "" if disk.free is None else f", {amount(disk.free)} free"
    rows = [
        ["algorithm", checked.algorithm],
        ["tensors", counted(checked.tensors)],
        ["output", disk.path or "in memory"],
        *([["disk", f"{amount(disk.needed)}{free}"]] if disk.path else []),
        ["memory", _memory(checked.memory)],
    ]
    unknown = [model.name for model in checked.models if model.licence is None and not model.nested]
    if unknown:
        rows.append(["licences", f"not known: {', '.join(unknown)}"])
    for name, reasons in checked.needs_trust.items():
        rows += [["needs trust", f"{name}: {reason}"] for reason in reasons]
    rows += [["not checked", each] for each in checked.not_checked]
    rows += [["matrices", str(matrix)] for matrix in checked.matrices]
    rows += [
        ["fallback", str(fallback)] for fallback in checked.fallbacks if not fallback.is_notable
    ]
    return rows + [["warning", warning] for warning in checked.warnings]


def _memory(memory: Memory) -> str:
    word = "at least" if memory.at_least else "about"
    unknown = f"; {memory.unknown}" if memory.unknown else ""
    parts = (
        f"{amount(memory.process)} Python and torch, {amount(memory.merge)} merging ({memory.how})"
    )
    live = f", {amount(memory.live)} live models" if memory.live else ""
    kept = f", {amount(memory.kept)} the merge" if memory.kept else ""
    return f"{word} {amount(memory.total)}: {parts}{live}{kept}{unknown}"


def _bad_as_json(bad: list[BadTensor]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(each) for each in bad]
