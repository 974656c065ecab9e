"""The command `fuse sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from fusion_sweep.search import Search

Text = Optional[str]  # noqa: UP045 - typer reads these annotations at run time
Texts = Optional[list[str]]  # noqa: UP045
Count = Optional[int]  # noqa: UP045
Store = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="FILE",
        help="Use the store FILE; default: ~/.local/share/fusion-core/sweeps.sqlite.",
    ),
]


def sweep(
    context: typer.Context,
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            help="Read this recipe, a YAML file; flags override it.", show_default=False
        ),
    ] = None,
    over: Annotated[
        Texts,
        typer.Option(
            metavar="OPTION=VALUES",
            help="Try these values: 0.1,0.2 or 0:1:0.1, or draw from 0:1 or 1e-4:1:log; "
            "repeatable.",
        ),
    ] = None,
    algo: Annotated[
        Text, typer.Option(metavar="A,B,...", help="Try these algorithms; a pipeline is A+B.")
    ] = None,
    pool: Annotated[Text, typer.Option(metavar="NAME", help="Merge this model pool.")] = None,
    task_pool: Annotated[
        Text, typer.Option(metavar="NAME", help="Measure on this task pool.")
    ] = None,
    tasks: Annotated[Text, typer.Option(metavar="A,B", help="Use only these tasks.")] = None,
    assignments: Annotated[
        Texts,
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option of all runs; repeatable."),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Run each point with N seeds, from the recipe's seed on."
        ),
    ] = 1,
    random: Annotated[
        Count, typer.Option(metavar="N", min=1, help="Draw N points instead of trying a grid.")
    ] = None,
    tpe: Annotated[
        Count, typer.Option(metavar="N", min=1, help="Search N points by Optuna's TPE.")
    ] = None,
    cma_es: Annotated[
        Count, typer.Option(metavar="N", min=1, help="Search N points by CMA-ES.")
    ] = None,
    objective: Annotated[
        Texts,
        typer.Option(
            metavar="NAME",
            help="Choose by average, normalised, worst or a task, or without labels by entropy or "
            "agreement; repeatable. Default: average.",
        ),
    ] = None,
    on: Annotated[
        Text,
        typer.Option(
            metavar="half|test",
            help="Choose on one half of the test examples or on all; default: half, if possible.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Measure without labels on N examples per task.")
    ] = 256,
    keep: Annotated[
        Text, typer.Option(metavar="N|best", help="Write the N best models to -o DIR.")
    ] = None,
    output: Annotated[
        Text, typer.Option("-o", "--output", metavar="DIR", help="Write the --keep models here.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output of --keep.")
    ] = False,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Print N rows of the table.")] = 10,
    store: Store = None,
    scratch: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Merge on disk instead of in memory; each model is removed."
        ),
    ] = None,
    executor: Annotated[
        Text,
        typer.Option(
            metavar="NAME",
            help="Run trials on an executor that has other processes; default: run them here.",
        ),
    ] = None,
    workers: Annotated[
        Count,
        typer.Option(metavar="N", min=1, help="Use N workers; short for --set executor.workers."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Run models on this device: cpu, cuda.")
    ] = "cpu",
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--trust",
            metavar="NAME",
            help="Allow a part of the recipe that can run code, by its name in `fuse check`; "
            "repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Run a recipe with many algorithms and options, and rank the results.

    Every finished run is saved in a store, and no later sweep repeats it. To resume an interrupted
    sweep, repeat its command. Several processes with the same command share the work. Models are
    not written, except for the best that --keep asks for.

    \b
    Examples:
      fuse sweep recipe.yaml --over algorithm.scale=0:1:0.1
      fuse sweep --algo ties,dare --pool mini8 --over algorithm.scale=0.2,0.3 --seeds 3
      fuse sweep recipe.yaml --over algorithm.density=0.05:1 --tpe 30 --keep best -o merged
    """  # noqa: D301 - \b is typer's: lines stay as they are
    import logging

    from fusion_core import RunOptions, hub
    from fusion_core.commands import (
        load_recipe,
        override,
        print_json,
        progress_for,
        sections_from,
        trusted_names,
    )
    from fusion_core.errors import RecipeError
    from fusion_sweep.axes import ALGORITHM, fixed_values, parse_over_flags
    from fusion_sweep.formatting import print_result
    from fusion_sweep.runner import sweep as run_sweep

    logging.basicConfig(format="warning: %(message)s")
    names = {"model_pool": pool, "task_pool": task_pool, "executor": executor}
    sections = {} if recipe is None else load_recipe(recipe)
    # Options of algorithms that are tried in turn are set when a run's algorithm is known.
    shared = [one for one in assignments or [] if algo and one.startswith(f"{ALGORITHM}.")]
    others = [one for one in assignments or [] if one not in shared]
    raw = override(sections_from(sections, names, tasks), others)
    if on not in {None, "half", "test"}:
        raise RecipeError(f"--on: expected half or test, got {on!r}")
    progress = progress_for(quiet=quiet)
    with hub.session(progress):
        result = run_sweep(
            raw,
            over={
                **(fixed_values(override({}, shared)[ALGORITHM]) if shared else {}),
                **parse_over_flags(over or []),
            },
            algorithms=[] if algo is None else algo.split(","),
            seeds=seeds,
            search=_choose_search(random, tpe, cma_es, raw.get("seed", 0)),
            objectives=objective or ["average"],
            on=on,  # type: ignore[arg-type] # one of the literals
            samples=samples,
            keep=_parse_keep(keep, output),
            output=output,
            store=store,
            scratch=scratch,
            options=RunOptions(
                device=device,
                overwrite=overwrite,
                workers=workers,
                progress=progress,
                block=context.obj or frozenset(),
                trust=trusted_names(trust),
            ),
        )
    if as_json:
        print_json(result.as_json())
    else:
        print_result(result, top)
    if result.failed or (keep is not None and not result.written):
        raise typer.Exit(1)


def _choose_search(random: int | None, tpe: int | None, cma_es: int | None, seed: int) -> Search:
    from fusion_core.errors import RecipeError
    from fusion_sweep.search import Search

    counts: dict[Any, int | None] = {"random": random, "tpe": tpe, "cma-es": cma_es}
    given = {kind: count for kind, count in counts.items() if count is not None}
    if len(given) > 1:
        flags = " and ".join(f"--{kind}" for kind in given)
        raise RecipeError(f"conflicting options: {flags}", hint="Give one kind of search.")
    return Search(*next(iter(given.items())), seed) if given else Search()


def _parse_keep(keep: str | None, output: str | None) -> int:
    from fusion_core.errors import RecipeError

    if keep is None:
        if output is not None:
            raise RecipeError("-o needs --keep", hint="Add --keep best, or leave out -o.")
        return 0
    if keep != "best" and not (keep.isdecimal() and int(keep)):
        raise RecipeError(f"--keep: expected a positive number or best, got {keep!r}")
    return 1 if keep == "best" else int(keep)
