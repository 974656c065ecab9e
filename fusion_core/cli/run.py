"""`fuse run`: flags over file over defaults, then the pipeline."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from fusion_core.cli import completion
from fusion_core.cli.info import option_rows, options_as_json
from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, print_warnings, warn_of_broken_plugins
from fusion_core.cli.progress import progress_for
from fusion_core.errors import DiskError, FusionError
from fusion_core.plugins import load_plugins
from fusion_core.ranks import helps
from fusion_core.shown import without_secrets
from fusion_core.specs import AlgorithmSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.planning import Plan
    from fusion_core.run import RunResult

Algo = Annotated[
    Optional[str],  # noqa: UP045 - typer reads these annotations at run time
    typer.Option(
        "--algo", metavar="NAME", help="How to fuse.", autocompletion=completion.algorithms
    ),
]
Pool = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="NAME", help="What to fuse: a model pool.", autocompletion=completion.model_pools
    ),
]
TaskPoolName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME", help="What to evaluate on.", autocompletion=completion.task_pools),
]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="A,B", help="Only these tasks of the task pool.", autocompletion=completion.tasks
    ),
]
Assignments = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set", metavar="KEY=VALUE", help="An option, e.g. algorithm.density=0.3; repeatable."
    ),
]
RecipeFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(help="A recipe in YAML; flags override it.", show_default=False),
]
Output = Annotated[
    Optional[str],  # noqa: UP045 - no Path, to which nothing at all would be the working directory
    typer.Option("-o", "--output", metavar="DIR", help="Default: outputs/<pool>-<algorithm>-<n>."),
]
Seed = Annotated[Optional[int], typer.Option(help="Default: 0.")]  # noqa: UP045
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Do not evaluate.")]
ExecutorName = Annotated[str, typer.Option(metavar="NAME", help="What merges run on.")]
Workers = Annotated[Optional[int], typer.Option(help="Default: one a core.", min=1)]  # noqa: UP045
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where live models run: cpu, cuda.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log what happens.")]


class RunCommand(TyperCommand):
    """`fuse run`, whose help ends with the options of the algorithm that `--algo` names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
        """Remember the arguments: help is shown before they are parsed."""
        self._arguments = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Add the algorithm's options."""
        super().format_options(ctx, formatter)
        name = _value_of("--algo", self._arguments)
        if name is None:
            formatter.write("\nWith --algo NAME, this help shows the algorithm's options too.\n")
            return
        try:
            component = load_plugins(ctx.obj or frozenset()).find(AlgorithmSpec, name)
            rows = option_rows(options_as_json(component))
        except FusionError as error:
            formatter.write(f"\n{error}\n")
            return
        with formatter.section(f"Options of {name} (--set algorithm.OPTION=VALUE)"):
            formatter.write_dl([(f"{row[0]}  {row[1]}", f"{row[3]} [{row[2]}]") for row in rows])


def run(
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a stopped run of the same left.")
    ] = False,
    no_eval: NoEval = False,
    device: Device = "cpu",
    executor: ExecutorName = "threads",
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, as `fuse check`, and stop.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved recipe, and stop.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fuse models, write the result, evaluate it.

    The output directory loads with from_pretrained as it is; beside the weights it holds
    recipe.yaml, provenance.json and, where tasks were evaluated, report.json.

    \b
    Examples:
      fuse run --algo ties --pool mini8
      fuse run --algo ties --set model_pool.base=base \\
        --set 'model_pool.models=[math, code]' -o merged
      fuse run recipe.yaml --set algorithm.density=0.3 -o merged --overwrite
      fuse run recipe.yaml --set 'algorithm.skip="*norm*"' --dry-run
    """  # noqa: D301 - \b is typer's: lines stay as they are
    set_up_logging(verbose=verbose)
    quiet = quiet or helps()
    plan = planned(
        context,
        recipe,
        {"algorithm": algo, "model_pool": pool, "task_pool": task_pool, "tasks": tasks},
        assignments,
        seed=seed,
        output=output,
        evaluate=not no_eval,
        overwrite=overwrite,
        resume=resume,
        device=device,
        executor=executor,
        workers=workers,
        progress=progress_for(quiet=quiet),
    )
    if print_config:
        from fusion_core.recipes import dump_yaml

        print(dump_yaml(plan.recipe), end="")
        return
    if dry_run:
        from fusion_core.cli.check import show_check

        show_check(plan, as_json=as_json)
        return
    if not helps():
        print_warnings(plan.warnings)
    if not quiet:
        print(f"tensors: {counted(plan.counts)}", file=sys.stderr)
    from fusion_core import hub
    from fusion_core.run import execute, wanted

    with hub.session(plan.options.progress):
        files = wanted(plan)
        if files and not quiet:
            print(hub.check_room(hub.size_of(files)), file=sys.stderr)
        result = execute(plan)
    if not helps():
        _show(result, plan.algorithm_name, as_json=as_json)


def planned(
    context: typer.Context,
    recipe: Path | None,
    names: dict[str, str | None],
    assignments: list[str] | None,
    *,
    seed: int | None,
    output: str | None,
    **options: Any,  # noqa: ANN401 - fields of RunOptions
) -> Plan:
    """Plan a run from flags over a file; says which plugins failed to load.

    `names` are the flags that name a section's component, and `tasks`.
    """
    warn_of_broken_plugins(load_plugins(context.obj))
    from fusion_core.recipes import assign, load_recipe, override

    raw = {} if recipe is None else load_recipe(recipe)
    tasks = names.pop("tasks")
    raw = override(sections_from(raw, names, tasks), assignments or [])
    if seed is not None:
        raw["seed"] = seed
    if output is not None:
        raw = assign(raw, ("output", "path"), output, origin=f"-o {output}")

    from fusion_core.planning import RunOptions, plan  # torch: not before the recipe has been read

    gc.freeze()  # what was imported stays: headers of many tensors are parsed twice as fast
    return plan(raw, RunOptions(block=context.obj, **options))


def set_up_logging(*, verbose: bool) -> None:
    """Send logs to stderr, one line each, without the credentials of URLs."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True
    )


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def sections_from(
    raw: dict[str, Any], names: dict[str, str | None], tasks: str | None
) -> dict[str, Any]:
    """Apply the flags that name components and tasks; a name of another component drops options."""
    from fusion_core.recipes import assign

    for section, name in names.items():
        if name is not None:
            raw[section] = {**_options_kept(raw.get(section), name), "name": name}
    if tasks is None:
        return raw
    listed = [task.strip() for task in tasks.split(",")]
    return assign(raw, ("task_pool", "tasks"), listed, origin=f"--tasks {tasks}")


def _options_kept(section: Any, name: str) -> dict[str, Any]:  # noqa: ANN401 - from YAML
    """Keep a section's options if the flag names the same component as the file."""
    if isinstance(section, dict) and section.get("name", name) == name:
        return section
    return {}


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def counted(counts: Mapping[str, int]) -> str:
    """Say what becomes of the tensors."""
    return ", ".join(f"{count} {fate}" for fate, count in counts.items())


def _show(result: RunResult, algorithm: str, *, as_json: bool) -> None:
    try:
        _print(result, algorithm, as_json=as_json)
        sys.stdout.flush()
    except DiskError as error:  # of stdout
        if result.path is not None:
            error.add_note(f"The model is complete in {result.path}.")
        raise


def _print(result: RunResult, algorithm: str, *, as_json: bool) -> None:
    report = None if result.report is None else result.report.as_json()
    if as_json:
        print_json({"path": None if result.path is None else str(result.path), "report": report})
        return
    if result.report is not None:
        from fusion_core.report.table import print_reports

        print_reports({algorithm: result.report})
    if result.path is not None:
        print(f"written: {result.path}")
