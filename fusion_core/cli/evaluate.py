"""`fuse evaluate MODEL`: measure a model directory on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fusion_core.cli.events import record_events
from fusion_core.cli.flags import (
    AsJson,
    Device,
    EventsFile,
    Fresh,
    Pool,
    Quiet,
    ShowIntervals,
    TaskPoolName,
    Tasks,
    Trust,
    Verbose,
    sections_from,
    set_up_logging,
    trusted_names,
)
from fusion_core.cli.output import print_json, warn_of_broken_plugins, warn_of_experts
from fusion_core.cli.progress import progress_for
from fusion_core.errors import RecipeError
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.report import Report


def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Measure the model in this directory.")],
    pool: Pool = None,
    task_pool: TaskPoolName = None,
    tasks: Tasks = None,
    recipe: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads these annotations at run time
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="Take models and tasks from this recipe; default: that of the run that wrote the "
            "directory.",
        ),
    ] = None,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set an option of the models or the tasks, e.g. task_pool.limit=8; repeatable.",
        ),
    ] = None,
    fresh: Fresh = False,
    intervals: ShowIntervals = False,
    events: EventsFile = None,
    device: Device = "cpu",
    trust: Trust = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model on tasks, next to base and experts.

    If fuse run wrote the directory, the models and tasks of its recipe apply. Flags change single
    options. Without such flags, the command replaces the directory's report.json.

    Scores that fuse run or fuse evaluate measured before are not measured again, as long as the
    model, the tasks and their options, the code and the machine are the same.
    """
    set_up_logging(verbose=verbose)
    with record_events(events, "evaluate", context.obj) as recorder:
        plugins = load_plugins(context.obj)
        warn_of_broken_plugins(plugins)
        from fusion_core.machine.devices import resolve_device
        from fusion_core.plugins.recipe_files import load_recipe
        from fusion_core.recipe.assignments import override
        from fusion_core.running.evaluation import evaluate_directory
        from fusion_core.running.recorded_recipe import load_recorded_recipe

        _check_assignments(assignments or [], model)
        raw = load_recorded_recipe(model) if recipe is None else load_recipe(recipe, plugins)
        names = {"model_pool": pool, "task_pool": task_pool}
        report: Report = evaluate_directory(
            model,
            plugins,
            recipe=override(sections_from(raw, names, tasks), assignments or []),
            device=resolve_device(device),
            progress=recorder.record_progress(progress_for(quiet=quiet)),
            fresh=fresh,
            trust=trusted_names(trust),
        )
        recorder.write("report", report=report.as_json())
    from fusion_core.contracts.intervals import Intervals

    method = Intervals() if intervals else None
    reports = {model.resolve().name: report}
    warn_of_experts(reports)
    if as_json:
        print_json(report.as_json(method))
        return
    from fusion_core.report.table import print_reports

    print_reports(reports, intervals=method)


def _check_assignments(assignments: Sequence[str], model: Path) -> None:
    """Raise `RecipeError` for an option that does not change how a model is measured."""
    from fusion_core.running.recorded_recipe import MEASURING_SECTIONS

    known = ", ".join(MEASURING_SECTIONS)
    for assignment in assignments:
        section, dot, _ = assignment.partition("=")[0].partition(".")
        if section in {"", *MEASURING_SECTIONS}:
            continue
        if dot:
            raise RecipeError(
                f"--set {assignment!r}: {section} does not change how a finished model is measured",
                hint=f"fuse evaluate takes options of {known}. To merge again with other options: "
                f"fuse run {model}/recipe.yaml --set {assignment} -o DIR",
            )
        raise RecipeError(
            f"--set {assignment!r}: expected SECTION.OPTION=VALUE",
            hint=f"For an option of the tasks: --set task_pool.{assignment}",
        )
