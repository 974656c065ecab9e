"""`fuse run`: plan a run from recipe and flags, execute it, and print its results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fusion_core.cli.check import describe_counts, show_check
from fusion_core.cli.events import record_events
from fusion_core.cli.flags import (
    Algo,
    AsJson,
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
    plan_from_flags,
    set_up_logging,
    stage_names,
)
from fusion_core.cli.info import option_rows, options_as_json
from fusion_core.cli.output import print_json, print_warnings, warn_of_experts
from fusion_core.cli.progress import progress_for
from fusion_core.errors import DiskError, FusionError
from fusion_core.formatting import escape_control, similar_names
from fusion_core.machine.ranks import is_helper_process
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from fusion_core.contracts.run import RunResult
    from fusion_core.planning.run_plan import Plan


class RunCommand(TyperCommand):
    """A command whose help ends with the options of the algorithm that `--algo` names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
        """Keep the arguments for help, and explain where the options of methods belong."""
        self._arguments = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            _explain_unknown_option(error)
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Add the algorithm's options."""
        super().format_options(ctx, formatter)
        algo = _flag_value("--algo", self._arguments)
        if algo is None:
            formatter.write("\nWith --algo NAME, this help also shows the algorithm's options.\n")
            return
        plugins, stages = load_plugins(ctx.obj or frozenset()), stage_names(algo)
        for stage in stages:
            section = "algorithm" if len(stages) == 1 else f"algorithm.{stage}"
            try:
                rows = list(option_rows(options_as_json(plugins.find_stages(stage), plugins)))
            except FusionError as error:
                formatter.write(escape_control(f"\n{error}\n"))
                continue
            with formatter.section(f"Options of {stage} (--set {section}.OPTION=VALUE)"):
                formatter.write_dl(
                    [
                        (f"{name}  {kind}", f"{description} [{default}]")
                        for name, kind, default, description in rows
                    ]
                )


def _explain_unknown_option(error: Any) -> None:  # noqa: ANN401 - typer's, which it does not export
    """Say where the options of methods belong, unless the option resembles a flag."""
    if not hasattr(error, "possibilities"):
        return
    if not similar_names(error.option_name, error.possibilities or (), cutoff=0.75):
        error.possibilities = []
        name = error.option_name.lstrip("-").replace("-", "_")
        error.message += f". To set an option of the method: --set algorithm.{name}=VALUE"


def _flag_value(flag: str, arguments: list[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


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
        bool, typer.Option("--resume", help="Continue a stopped run of the same recipe.")
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
        bool, typer.Option("--dry-run", help="Check the run like fuse check, and stop.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved recipe, and stop.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fuse models, write the result and evaluate it.

    Without a recipe, models or --pool, the run fuses the default pool; fuse list pools marks it.
    from_pretrained loads the output directory. Next to the weights, the directory holds
    recipe.yaml, provenance.json and, after an evaluation, report.json.

    \b
    Examples:
      fuse run --algo ties --pool mini8
      fuse run --algo ties --set model_pool.base=base \\
        --set 'model_pool.models=[math, code]' -o merged
      fuse run recipe.yaml --set algorithm.density=0.3 -o merged --overwrite
      fuse run recipe.yaml --set 'algorithm.skip="*norm*"' --dry-run
    """  # noqa: D301 - \b is typer's: lines stay as they are
    set_up_logging(verbose=verbose)
    quiet = quiet or is_helper_process()
    with record_events(events, "run", context.obj) as recorder:
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
            fresh=fresh,
            overwrite=overwrite or print_config,  # which writes nothing
            resume=resume,
            device=device,
            workers=workers,
            progress=recorder.record_progress(progress_for(quiet=quiet)),
        )
        if print_config and as_json:
            print_json(plan.recipe)
        elif print_config:
            from fusion_core.recipe.text import dump_yaml

            print(dump_yaml(plan.recipe), end="")
        elif dry_run:
            show_check(plan, as_json=as_json)
        else:
            run_plan(plan, quiet=quiet, as_json=as_json, intervals=intervals)


def run_plan(plan: Plan, *, quiet: bool, as_json: bool, intervals: bool = False) -> None:
    """Announce a plan, execute it, and print its results, as `fuse run` does."""
    plan.check_trust()
    if not is_helper_process():
        print_warnings(plan.warnings)
    if not quiet:
        print(f"tensors: {describe_counts(plan.counts)}", file=sys.stderr)
        for fallback in plan.fallbacks:
            if not fallback.is_notable:
                print(escape_control(str(fallback)), file=sys.stderr)
    from fusion_core import hub
    from fusion_core.running.run import execute

    with hub.session(plan.options.progress):
        files, since = plan.downloads(), plan.revisions_as_of
        if (files or since) and not quiet:
            outlook = hub.check_space(hub.measure_download(files), since)
            print(escape_control(outlook), file=sys.stderr)
        result = execute(plan)
    if not is_helper_process():
        _show(plan, result, as_json=as_json, intervals=intervals)


def _show(plan: Plan, result: RunResult, *, as_json: bool, intervals: bool) -> None:
    try:
        _print(result, plan.algorithm_name, as_json=as_json, intervals=intervals)
        sys.stdout.flush()  # observers may take a while
        if plan.options.evaluate and not as_json:
            where = {"device": plan.device, "progress": plan.options.progress}
            for text in plan.plugins.notify("fusion_run_shown", result=result, **where):
                print(f"\n{escape_control(text)}")
        sys.stdout.flush()
    except (DiskError, KeyboardInterrupt) as error:  # of stdout, or while an observer works
        if result.path is not None:
            error.add_note(f"The model is complete in {result.path}.")
        raise


def _print(result: RunResult, algorithm: str, *, as_json: bool, intervals: bool) -> None:
    from fusion_core.contracts.intervals import Intervals

    method = Intervals() if intervals else None
    reports = {} if result.report is None else {algorithm: result.report}
    warn_of_experts(reports)
    if as_json:
        report = result.report and result.report.as_json(method)
        print_json({"path": None if result.path is None else str(result.path), "report": report})
        return
    if reports:
        from fusion_core.report.table import print_reports

        print_reports(reports, intervals=method)
    for line in result.summary:
        print(escape_control(line))
    if result.path is not None:
        print(escape_control(f"written: {result.path}"))
