"""`fuse check`: whether a run can work, and what it would do, without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fusion_core.cli.flags import (
    Algo,
    AsJson,
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
    plan_from_flags,
    set_up_logging,
)
from fusion_core.cli.output import print_json, print_table
from fusion_core.cli.progress import progress_for
from fusion_core.formatting import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.checking.check import Check, Model
    from fusion_core.checking.memory import Memory
    from fusion_core.planning.run_plan import Plan
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
        bool, typer.Option("--scan", help="Also read all weights and look for NaN and infinity.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check what a run would do, without writing anything.

    The check covers recipe, plugins, tensor names, shapes, dtypes, licences, disk and memory. It
    reads headers, and the values of tied matrices that are stored twice. The exit code is that of
    the run: 4 if the models do not match, 6 if the output does not fit on the disk, 2 if the recipe
    needs trust that --trust does not give. The check shows what needs trust and does not start it.
    """
    set_up_logging(verbose=verbose)
    plan = plan_from_flags(
        context,
        recipe,
        algo=algo,
        pool=pool,
        task_pool=task_pool,
        executor=executor,
        tasks=tasks,
        assignments=assignments,
        seed=seed,
        output=output,
        trust=trust,
        quiet=quiet,
        evaluate=not no_eval,
        overwrite=overwrite,
        device=device,
        workers=workers,
        progress=progress_for(quiet=quiet),
    )
    show_check(plan, scan=scan, as_json=as_json)


def show_check(plan: Plan, *, scan: bool = False, as_json: bool) -> None:
    """Print what a plan would do. Raises the errors that the run would raise, if predictable."""
    from fusion_core.checking import check as checking

    checked = checking.check(plan)
    bad = checking.scan(plan) if scan else None
    if as_json:
        bad_tensors = None if bad is None else [asdict(tensor) for tensor in bad]
        print_json({**checked.as_json(), "scan": bad_tensors})
    else:
        _print(checked, bad)
        if plan.revisions_as_of is not None:
            from fusion_core import hub

            print(hub.describe_age(plan.revisions_as_of))
    if bad is not None:
        checking.raise_if_bad(bad, plan)
    plan.check_trust()
    checked.check_disk_space()


def _print(checked: Check, bad: list[BadTensor] | None) -> None:
    columns = [[heading, *map(cell, checked.models)] for heading, cell in _COLUMNS.items()]
    headings, *rows = zip(*(column for column in columns if any(column[1:])), strict=True)
    print_table(headings, rows)
    print()
    print_table(["the run", ""], _rows(checked))
    if checked.groups:
        print()
        print_table(["tensors", "count", "share", "holds", "treatment"], _group_rows(checked))
    if bad:
        print()
        counts = [
            [tensor.model, tensor.tensor, str(tensor.nan), str(tensor.infinite)] for tensor in bad
        ]
        print_table(["model", "tensor", "NaN", "infinite"], counts)
    elif bad is not None:
        print("\nscan: all weights are finite")


def _differences(model: Model) -> str:
    counts = {"missing": model.missing, "extra": model.extra}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


#: The columns of the table of models. An empty column is left out.
_COLUMNS: dict[str, Callable[[Model], str]] = {
    "model": lambda model: model.name,
    "source": lambda model: model.source,
    "tensors": lambda model: str(model.tensors),
    "size": lambda model: format_bytes(model.bytes),
    "dtype": lambda model: ", ".join(model.dtypes),
    "decoded from": lambda model: model.decoded_from,
    "licence": lambda model: model.licence or "",
    "differs": _differences,
}


def _rows(checked: Check) -> list[list[str]]:
    disk = checked.disk
    space = ""
    if disk.needed is not None and disk.free is not None:
        space = f"{format_bytes(disk.needed)}, {format_bytes(disk.free)} free"
    unknown = [model.name for model in checked.models if model.licence is None and not model.nested]
    return [
        ["algorithm", checked.algorithm],
        ["tensors", describe_counts(checked.tensors)],
        ["output", disk.path or "in memory"],
        *([["disk", space]] if space else []),
        ["memory", _describe_memory(checked.memory)],
        *([["licences", f"not known: {', '.join(unknown)}"]] if unknown else []),
        *(
            ["needs trust", f"{name}: {reason}"]
            for name, reasons in checked.needs_trust.items()
            for reason in reasons
        ),
        *(["not checked", text] for text in checked.not_checked),
        *(["fallback", str(item)] for item in checked.fallbacks if not item.is_notable),
        *(["warning", warning] for warning in checked.warnings),
    ]


def _group_rows(checked: Check) -> list[list[str]]:
    rows = [
        [group.tensors, str(group.count), _percent(group.share), group.holds, group.treatment]
        for group in checked.groups
    ]
    share = _percent(checked.outside_matrices or 0)
    return [*rows, ["outside of matrices", "", share, "", "not reached by methods on matrices"]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def describe_counts(counts: Mapping[str, int]) -> str:
    """Describe the numbers of merged, copied and dropped tensors."""
    return ", ".join(f"{count} {fate}" for fate, count in counts.items())


def _describe_memory(memory: Memory) -> str:
    word = "at least" if memory.at_least else "about"
    unknown = f"; {memory.unknown}" if memory.unknown else ""
    process, merge = format_bytes(memory.process), format_bytes(memory.merge)
    parts = f"{process} Python and torch, {merge} merging ({memory.how})"
    live = f", {format_bytes(memory.live)} live models" if memory.live else ""
    merged = f", {format_bytes(memory.kept)} the merge" if memory.kept else ""
    return f"{word} {format_bytes(memory.total)}: {parts}{live}{merged}{unknown}"
