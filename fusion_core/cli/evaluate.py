"""`fuse evaluate MODEL`: measure a model directory on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion_core.cli.events import record_events
from fusion_core.cli.flags import (
    AsJson,
    Assignments,
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
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from fusion_core.contracts.report import Report


def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Measure the model in this directory.")],
    pool: Pool = None,
    task_pool: TaskPoolName = None,
    tasks: Tasks = None,
    assignments: Assignments = None,
    fresh: Fresh = False,
    intervals: ShowIntervals = False,
    events: EventsFile = None,
    device: Device = "cpu",
    trust: Trust = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model directory on tasks.

    The pool's base and each task's own expert are measured too, unless an earlier run did so.

    If fuse run wrote the directory, the pools and tasks of its recipe apply unless flags override
    them, and its report.json is replaced.
    """
    set_up_logging(verbose=verbose)
    with record_events(events, "evaluate", context.obj) as recorder:
        plugins = load_plugins(context.obj)
        warn_of_broken_plugins(plugins)
        from fusion_core.machine.devices import resolve_device
        from fusion_core.recipe.assignments import override
        from fusion_core.running.evaluation import evaluate_directory

        names = {"model_pool": pool, "task_pool": task_pool}
        sections = override(sections_from({}, names, tasks), assignments or [])
        report: Report = evaluate_directory(
            model,
            plugins,
            model_pool=sections.get("model_pool"),
            task_pool=sections.get("task_pool"),
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
