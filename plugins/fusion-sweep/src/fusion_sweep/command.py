"""`fuse sweep`: the flags, and what is printed."""

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
        help="Where runs are kept; default: fusion-core/sweeps.sqlite in ~/.local/share.",
    ),
]


def sweep(
    context: typer.Context,
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A recipe in YAML; flags override it.", show_default=False),
    ] = None,
    over: Annotated[
        Texts,
        typer.Option(
            metavar="OPTION=VALUES",
            help="What is tried: 0.1,0.2 or 0:1:0.1; to draw from, 0:1 or 1e-4:1:log; repeatable.",
        ),
    ] = None,
    algo: Annotated[
        Text, typer.Option(metavar="A,B,...", help="Algorithms to try; a pipeline is a+b.")
    ] = None,
    pool: Annotated[Text, typer.Option(metavar="NAME", help="What to fuse: a model pool.")] = None,
    task_pool: Annotated[Text, typer.Option(metavar="NAME", help="What to measure on.")] = None,
    tasks: Annotated[Text, typer.Option(metavar="A,B", help="Only these tasks.")] = None,
    assignments: Annotated[
        Texts, typer.Option("--set", metavar="KEY=VALUE", help="An option for all; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point, from the seed on.")] = 1,
    random: Annotated[
        Count, typer.Option(metavar="N", min=1, help="Draw N points, instead of a grid.")
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
            help="average, normalised, worst or a task; entropy or agreement need no labels; "
            "repeatable. Default: average.",
        ),
    ] = None,
    on: Annotated[
        Text,
        typer.Option(
            metavar="half|test",
            help="Labels to choose by; default: a half of the test examples, where possible.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Examples a task that are looked at without labels.")
    ] = 256,
    keep: Annotated[
        Text, typer.Option(metavar="N|best", help="Write the N best models to -o DIR.")
    ] = None,
    output: Annotated[
        Text, typer.Option("-o", "--output", metavar="DIR", help="Where --keep writes.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is where --keep writes.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 10,
    store: Store = None,
    scratch: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Merge here and not in memory; each model is removed again."
        ),
    ] = None,
    executor: Annotated[
        Text,
        typer.Option(
            metavar="NAME", help="What runs trials, if it has other processes; default: this one."
        ),
    ] = None,
    workers: Annotated[Count, typer.Option(min=1, help="Short for --set executor.workers.")] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where models run: cpu, cuda.")
    ] = "cpu",
    trust: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--trust",
            metavar="NAME",
            help="Allow what the recipe asks for that can run code, as `fuse check` names it; "
            "repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Try algorithms and options, and say which are best.

    Every run is kept in a store and never made again, by no later sweep either. An interrupted
    sweep goes on by the same command; several at once share the work. Models are not written,
    but for the best that --keep asks for.

    \b
    Examples:
      fuse sweep recipe.yaml --over algorithm.scale=0:1:0.1
      fuse sweep --algo ties,dare --pool mini8 --over algorithm.scale=0.2,0.3 --seeds 3
      fuse sweep recipe.yaml --over algorithm.density=0.05:1 --tpe 30 --keep best -o merged
    """  # noqa: D301 - \b is typer's: lines stay as they are
    import logging

    from fusion_core import RunOptions, hub
    from fusion_core.commands import override, print_json, progress_for, sections_from, trusted_by
    from fusion_sweep.axes import axes_of
    from fusion_sweep.shown import print_found
    from fusion_sweep.sweeping import sweep as run_sweep

    logging.basicConfig(format="warning: %(message)s")
    names = {"model_pool": pool, "task_pool": task_pool, "executor": executor}
    raw = override(sections_from(_read(recipe), names, tasks), assignments or [])
    progress = progress_for(quiet=quiet)
    with hub.session(progress):
        found = run_sweep(
            raw,
            over=axes_of(over or []),
            algorithms=[] if algo is None else algo.split(","),
            seeds=seeds,
            search=_search(random, tpe, cma_es, raw.get("seed", 0)),
            objectives=objective or ["average"],
            on=_choice(on),
            samples=samples,
            keep=_count(keep, output),
            output=output,
            store=store,
            scratch=scratch,
            options=RunOptions(
                device=device,
                overwrite=overwrite,
                workers=workers,
                progress=progress,
                block=context.obj or frozenset(),
                trust=trusted_by(trust),
            ),
        )
    if as_json:
        written = [str(path) for path in found.written]
        print_json({"sweep": found.id, "on": found.on, "runs": found.rows(), "written": written})
    else:
        print_found(found, top)
    if found.failed:
        raise typer.Exit(1)


def _read(recipe: Path | None) -> dict[str, Any]:
    from fusion_core.commands import load_recipe

    return {} if recipe is None else load_recipe(recipe)


def _search(random: int | None, tpe: int | None, cma_es: int | None, seed: int) -> Search:
    from fusion_core.errors import RecipeError
    from fusion_sweep.search import Search

    given = {"random": random, "tpe": tpe, "cma-es": cma_es}
    chosen = {kind: count for kind, count in given.items() if count is not None}
    if len(chosen) > 1:
        raise RecipeError(f"a sweep searches in one way, not by --{' and --'.join(chosen)}")
    return Search(*next(iter(chosen.items())), seed) if chosen else Search()  # type: ignore[arg-type]


def _choice(on: str | None) -> Any:  # noqa: ANN401 - one of a few words
    from fusion_core.errors import RecipeError

    if on not in {None, "half", "test"}:
        raise RecipeError(f"--on {on!r} is neither half nor test")
    return on


def _count(keep: str | None, output: str | None) -> int:
    from fusion_core.errors import RecipeError

    if keep is None:
        if output is not None:
            raise RecipeError("-o is where --keep writes, and nothing is kept", hint="--keep best")
        return 0
    if keep != "best" and not (keep.isdecimal() and int(keep)):
        raise RecipeError(f"--keep {keep!r} is neither a number nor best")
    return 1 if keep == "best" else int(keep)
