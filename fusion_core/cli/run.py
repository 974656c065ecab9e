"""`fuse run`: flags over file over defaults, then the pipeline."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fusion_core.cli.events import record_events
from fusion_core.cli.flags import (
    Algo,
    Assignments,
    Device,
    EventsFile,
    ExecutorName,
    Fresh,
    NoEval,
    Output,
    Overwrite,
    Pool,
    Quiet,
    RecipeFile,
    Seed,
    ShowIntervals,
    TaskPoolName,
    Tasks,
    Trust,
    Verbose,
    Workers,
    counted,
    planned,
    set_up_logging,
    stage_names,
)
from fusion_core.cli.info import option_rows, options_as_json
from fusion_core.cli.listing import AsJson
from fusion_core.cli.output import print_json, print_warnings, warn_of_experts
from fusion_core.cli.progress import progress_for
from fusion_core.errors import DiskError, FusionError
from fusion_core.machine.ranks import helps
from fusion_core.plugins.manager import load_plugins
from fusion_core.shown import printable

if TYPE_CHECKING:
    from fusion_core.contracts.run import RunResult
    from fusion_core.planning.planned import Plan


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
        plugins, stages = load_plugins(ctx.obj or frozenset()), stage_names(name)
        for stage in stages:
            section = "algorithm" if len(stages) == 1 else f"algorithm.{stage}"
            try:
                rows = list(option_rows(options_as_json(plugins.find_stages(stage), plugins)))
            except FusionError as error:
                formatter.write(printable(f"\n{error}\n"))
                continue
            with formatter.section(f"Options of {stage} (--set {section}.OPTION=VALUE)"):
                lines = [(f"{row[0]}  {row[1]}", f"{row[3]} [{row[2]}]") for row in rows]
                formatter.write_dl(lines)


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
    fresh: Fresh = False,
    intervals: ShowIntervals = False,
    events: EventsFile = None,
    device: Device = "cpu",
    executor: ExecutorName = None,
    workers: Workers = None,
    trust: Trust = None,
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
    with record_events(events, "run", context.obj) as recorded:
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
            fresh=fresh,
            overwrite=overwrite,
            resume=resume,
            device=device,
            workers=workers,
            progress=recorded.following(progress_for(quiet=quiet)),
        )
        if print_config:
            from fusion_core.recipe.text import dump_yaml

            print(dump_yaml(plan.recipe), end="")
            return
        if dry_run:
            from fusion_core.cli.check import show_check

            show_check(plan, as_json=as_json)
            return
        _carry_out(plan, quiet=quiet, as_json=as_json, intervals=intervals)


def _carry_out(plan: Plan, *, quiet: bool, as_json: bool, intervals: bool) -> None:
    """Say what is about to happen, do it, and show what came out."""
    plan.check_trust()
    if not helps():
        print_warnings(plan.warnings)
    if not quiet:
        print(f"tensors: {counted(plan.counts)}", file=sys.stderr)
        for fallback in plan.fallbacks:
            if not fallback.is_notable:
                print(printable(str(fallback)), file=sys.stderr)
    from fusion_core import hub
    from fusion_core.running.run import execute

    with hub.session(plan.options.progress):
        files = plan.downloads()
        if files and not quiet:
            print(printable(hub.check_room(hub.size_of(files))), file=sys.stderr)
        result = execute(plan)
    if not helps():
        _show(plan, result, as_json=as_json, intervals=intervals)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _show(plan: Plan, result: RunResult, *, as_json: bool, intervals: bool) -> None:
    try:
        _print(result, plan.algorithm_name, as_json=as_json, intervals=intervals)
        if plan.options.evaluate and not as_json:
            _print_more(plan, result)
        sys.stdout.flush()
    except (DiskError, KeyboardInterrupt) as error:  # of stdout, or while a plugin looks
        if result.path is not None:
            error.add_note(f"The model is complete in {result.path}.")
        raise


def _print_more(plan: Plan, result: RunResult) -> None:
    """Print what plugins have to say of the model."""
    sys.stdout.flush()  # it may take a while
    where = {"device": plan.device, "progress": plan.options.progress}
    for text in plan.plugins.notify("fusion_run_shown", result=result, **where):
        print(f"\n{printable(text)}")


def _print(result: RunResult, algorithm: str, *, as_json: bool, intervals: bool) -> None:
    from fusion_core.contracts.intervals import Intervals

    over = Intervals() if intervals else None
    if result.report is not None:
        warn_of_experts({algorithm: result.report})
    if as_json:
        report = result.report and result.report.as_json(over)
        print_json({"path": None if result.path is None else str(result.path), "report": report})
        return
    if result.report is not None:
        from fusion_core.report.table import print_reports

        print_reports({algorithm: result.report}, intervals=over)
    if result.path is not None:
        print(printable(f"written: {result.path}"))
